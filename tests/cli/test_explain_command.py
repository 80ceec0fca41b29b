"""`xattn explain` by options: what it prints for scripts is what `xattn.explain` says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from cli.command_line import SMALL, Run, plain
from support import Load, backend_source, qkv, stranger

import xattn
from xattn.explain import explain_request

Q, K, V = qkv()
GROUPED = qkv(seqlen_q=4, seqlen_k=6, nheads_k=2)


@pytest.mark.parametrize(
    ("options", "tensors", "arguments"),
    [
        ([], (Q, K, V), {}),
        (["--seqlen-k", "6", "--nheads-k", "2"], GROUPED, {}),
        (["--shape-k", "2,6,2"], GROUPED, {}),
        (["--headdim-v", "5"], (Q, K, V[..., :5]), {}),
        (["--dtype", "bf16"], (Q.bfloat16(), K.bfloat16(), V.bfloat16()), {}),
        (["--dtype", "float64"], (Q.double(), K.double(), V.double()), {}),
        (["--causal"], (Q, K, V), {"causal": True}),
        (["--window", "2,none"], (Q, K, V), {"window": (2, None)}),
        (["--window", "0,3"], (Q, K, V), {"window": (0, 3)}),
        (["--shape-k", "2,6,2", "--causal", "--align", "top_left"], GROUPED, {"causal": True, "align": "top_left"}),
        (["--shape-k", "2,6,2", "--causal", "--align", "1"], GROUPED, {"causal": True, "align": 1}),
        (["--window", "3,0", "--align", "-2"], (Q, K, V), {"window": (3, 0), "align": -2}),
        (["--scale", "0"], (Q, K, V), {"scale": 0.0}),
        (["--softcap", "20"], (Q, K, V), {"softcap": 20.0}),
        (["--sinks"], (Q, K, V), {"sinks": torch.zeros(4)}),
        (["--alibi-slopes"], (Q, K, V), {"alibi_slopes": torch.ones(4)}),
        (["--bias", "1,4,4,4"], (Q, K, V), {"bias": torch.zeros(1, 4, 4, 4)}),
        (["--mask", "4,4"], (Q, K, V), {"mask": torch.ones(4, 4, dtype=torch.bool)}),
        (["--seqlens-k", "3,4"], (Q, K, V), {"seqlens_k": torch.tensor([3, 4], dtype=torch.int32)}),
        (["--dropout-p", "0.1"], (Q, K, V), {"dropout_p": 0.1}),
        (["--deterministic"], (Q, K, V), {"deterministic": True}),
        (["--return-lse"], (Q, K, V), {"return_lse": True}),
        (["--grad"], (Q.clone().requires_grad_(), K, V), {}),
        (["--bias", "4,4", "--grad-bias"], (Q, K, V), {"bias": torch.zeros(4, 4, requires_grad=True)}),
        (["--sinks", "--grad-sinks"], (Q, K, V), {"sinks": torch.zeros(4, requires_grad=True)}),
        (["--backend", "reference"], (Q, K, V), {"backend": "reference"}),
        (["--backend", "sdpa,reference"], (Q, K, V), {"backend": ("sdpa", "reference")}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_explain_json_is_explain(run: Run, options: list[str], tensors: Any, arguments: dict[str, Any]) -> None:
    result = run("explain", *SMALL, *options, "--json")
    assert json.loads(result.stdout) == plain(xattn.explain(*tensors, **arguments).as_dict())
    assert result.exit_code == 0


def test_explain_for_a_device_that_is_not_here(run: Run) -> None:
    device = ["--device", "neuron", "--arch", "trn2", "--dtype", "bfloat16", "--json"]
    result = run("explain", "--shape", "1,2048,32,128", "--nheads-k", "8", "--causal", *device)
    request = xattn.AttentionRequest(
        device="neuron",
        arch="trn2",
        dtype=torch.bfloat16,
        batch=1,
        seqlen_q=2048,
        seqlen_k=2048,
        nheads=32,
        nheads_k=8,
        headdim=128,
        headdim_v=128,
        causal=True,
    )
    assert json.loads(result.stdout) == plain(explain_request(request).as_dict())


def test_explain_shows_every_reason_and_hint(run: Run, strangers: Path, load: Load) -> None:
    body = """
    def limits(self, request):
        return [
            xattn.Reason("headdim", request.headdim, (64, 128), "Pad it [sic]."),
            xattn.Reason("dtype", request.dtype, torch.float16),
        ]
    """
    load(stranger(strangers, "xattn-picky", backend_source("picky", 1.0, body=body)))
    result = run("explain", *SMALL)
    assert result.exit_code == 0
    for part in ("Backend  reference", "picky", "headdim: 8, supported: (64, 128)", "Pad it [sic].", "torch.float32"):
        assert part in result.stdout, part
    (reasons,) = (
        candidate["reasons"]
        for candidate in json.loads(run("explain", *SMALL, "--json").stdout)["candidates"]
        if candidate["name"] == "picky"
    )
    assert reasons == [
        {"code": "headdim", "got": "8", "want": "(64, 128)", "hint": "Pad it [sic]."},
        {"code": "dtype", "got": "torch.float32", "want": "torch.float16", "hint": ""},
    ]


def test_backends_for_other_devices_take_one_line(run: Run) -> None:
    shown = run("explain", *SMALL, columns=80).stdout
    (line,) = [line for line in shown.splitlines() if line.startswith("For other devices")]
    elsewhere = xattn.explain(Q, K, V).stopped_by("device")
    assert line == "For other devices: " + ", ".join(candidate.name for candidate in elsewhere)
    assert "Without" not in shown


def test_nobody_is_for_this_device(run: Run, strangers: Path, load: Load) -> None:
    load(stranger(strangers, "xattn-acme", backend_source("acme", 1.0)))
    result = run("explain", *SMALL, "--device", "cuda", "--backend", "acme")
    assert result.exit_code == 1
    assert "For other devices: acme" in result.stdout


def test_explain_asks_for_the_architecture_where_it_decides(run: Run, strangers: Path, load: Load) -> None:
    body = """
    capabilities = (
        xattn.Capabilities(
            device="acme", dtypes=frozenset({torch.float32}), features=frozenset(), archs=frozenset({"acme9"}),
            priority={"default": 1000}, checked="on paper",
        ),
    )
    """
    load(stranger(strangers, "xattn-acme", backend_source("acme", 1.0, body=body)))
    shown = run("explain", *SMALL, "--device", "acme").stdout
    assert "--arch says which one" in shown
    shown = run("explain", *SMALL, "--device", "acme", "--arch", "acme9").stdout
    assert "Backend  acme" in shown
    assert "--arch" not in shown


@pytest.mark.parametrize(
    ("device", "dtype"), [("cpu", "float32"), ("cuda", "bfloat16"), ("rocm", "bfloat16"), ("neuron", "bfloat16")]
)
def test_without_a_dtype_it_is_the_usual_one_of_the_device(run: Run, device: str, dtype: str) -> None:
    assert f", {dtype}, {device}" in json.loads(run("explain", *SMALL, "--device", device, "--json").stdout)["request"]
    named = run("explain", *SMALL, "--device", device, "--dtype", "float64", "--json")
    assert f", float64, {device}" in json.loads(named.stdout)["request"]
    words = ["apply_rotary", "q=2,4,4,8", "k=none", "cos=4,4:float32", "sin=4,4:float32"]
    assert f", {dtype}, {device}" in json.loads(run("explain", *words, "--device", device, "--json").stdout)["request"]


def test_the_usual_dtype_is_one_that_is_declared(run: Run, strangers: Path, load: Load) -> None:
    source = backend_source("acme", 1.0).replace('device="cpu"', 'device="privateuseone"')
    load(stranger(strangers, "xattn-acme", source))
    request = json.loads(run("explain", *SMALL, "--device", "privateuseone", "--json").stdout)["request"]
    assert ", float32, privateuseone" in request


def test_explain_notes_what_an_offset_hides(run: Run) -> None:
    result = run("explain", "--shape", "1,8,2,16", "--causal", "--align=-3")
    assert "the first 3 of 8 queries see no key" in " ".join(result.stdout.split())
