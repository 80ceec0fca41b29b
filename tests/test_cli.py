"""The command line: what it prints for scripts is what the library says, and every exit code means what --help says."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import ROOT, Load, backend_source, qkv, stranger
from typer.testing import CliRunner, Result
from xattn_conformance.ops.attention import rowwise
from xattn_conformance.ops.attention.problem import Problem

import xattn
from xattn.cli.app import app
from xattn.cli.bench import TORCH, duration, torch_arguments
from xattn.cli.info import report
from xattn.explain import explain_request

SMALL = ["--shape", "2,4,4,8"]

Run = Callable[..., Result]


@pytest.fixture
def run() -> Run:
    def run(*arguments: str, columns: int = 100) -> Result:
        result = CliRunner().invoke(app, list(arguments), env={"COLUMNS": str(columns)})
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return run


def plain(value: Any) -> Any:
    """As it comes back from JSON."""
    return json.loads(json.dumps(value))


# ---------------------------------------------------------------------------------------------------------------------
# info
# ---------------------------------------------------------------------------------------------------------------------


def test_info_json_is_info_and_the_capabilities(run: Run) -> None:
    result = run("info", "--json")
    document = json.loads(result.stdout)
    assert result.exit_code == 0
    declared = {backend["name"]: backend.pop("capabilities") for backend in document["backends"]}
    assert document == plain(xattn.info())
    (reference,) = declared["reference"]
    assert reference["device"] == "any"
    assert reference["features"] == list(xattn.capabilities.FEATURES)
    assert "float64" in reference["dtypes"]


def test_info_shows_what_a_backend_declares(run: Run, strangers: Path, load: Load) -> None:
    body = """
    capabilities = (
        xattn.Capabilities(
            device="acme", dtypes=frozenset({torch.bfloat16}), features=frozenset({"causal"}),
            headdim=(64, 128, 32), archs=frozenset({"acme9"}), checked="on paper",
        ),
    )
    def info(self):
        return {"driver": "4.2 [bold]"}
    """
    load(stranger(strangers, "xattn-acme", backend_source("acme", 1.0, body=body), plugin="acme-plugin"))
    shown = run("info").stdout
    for part in ("acme-plugin", "xattn-acme 1.0", "acme9", "bfloat16", "64 to 128, by 32", "on paper", "4.2 [bold]"):
        assert part in shown, part
    rows = {line.split()[0]: line.split()[1:] for line in shown.splitlines() if line.strip()}
    assert rows["causal"] == ["yes", "yes"]  # reference, acme
    assert rows["window"] == ["yes", "-"]


def test_info_reports_a_broken_plugin_and_ends_well(run: Run, strangers: Path, load: Load) -> None:
    load(stranger(strangers, "xattn-broken", "import no_such_vendor", plugin="broken"))
    result = run("info", columns=200)
    assert result.exit_code == 0
    assert result.stdout.count("No module named 'no_such_vendor'") >= 2  # in the table and as a problem
    assert "xattn-broken 1.0" in result.stdout


# ---------------------------------------------------------------------------------------------------------------------
# explain
# ---------------------------------------------------------------------------------------------------------------------

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
        (["--scale", "0"], (Q, K, V), {"scale": 0.0}),
        (["--softcap", "20"], (Q, K, V), {"softcap": 20.0}),
        (["--sinks"], (Q, K, V), {"sinks": torch.zeros(4)}),
        (["--alibi"], (Q, K, V), {"alibi_slopes": torch.ones(4)}),
        (["--bias", "1,4,4,4"], (Q, K, V), {"bias": torch.zeros(1, 4, 4, 4)}),
        (["--mask", "4,4"], (Q, K, V), {"mask": torch.ones(4, 4, dtype=torch.bool)}),
        (["--seqlens-k", "3,4"], (Q, K, V), {"seqlens_k": torch.tensor([3, 4], dtype=torch.int32)}),
        (["--dropout", "0.1"], (Q, K, V), {"dropout_p": 0.1}),
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
    request = xattn.Request(
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


# ---------------------------------------------------------------------------------------------------------------------
# bench
# ---------------------------------------------------------------------------------------------------------------------

QUICK = [*SMALL, "--seconds", "0.02"]


def test_bench_times_every_capable_backend_and_torch(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = run("bench", *QUICK, "--causal", "--json")
    assert result.exit_code == 0
    document = json.loads(result.stdout)
    able = {c.name for c in xattn.explain(Q, K, V, causal=True).candidates if not c.reasons}
    assert set(document["candidates"]) == {TORCH, *able}
    assert set(document["kernels"]) == {TORCH, *able}
    assert document["base"] == TORCH
    assert document["failures"] == {}
    assert document["request"] == str(xattn.explain(Q, K, V, causal=True).request)
    assert "1 thread" in document["method"]
    for row in document["candidates"].values():
        assert 0 < row["p10_us"] <= row["p50_us"] <= row["p90_us"]
    assert list(tmp_path.iterdir()) == []


def test_bench_without_torchs_own_compares_with_the_chosen_backend(run: Run) -> None:
    document = json.loads(run("bench", *QUICK, "--window", "1,0", "--json").stdout)
    assert TORCH not in document["candidates"]
    assert document["base"] == document["backend"] == xattn.explain(Q, K, V, window=(1, 0)).backend


def test_bench_times_only_what_was_asked_for(run: Run) -> None:
    document = json.loads(run("bench", *QUICK, "--backend", "reference", "--json").stdout)
    assert set(document["candidates"]) == {TORCH, "reference"}


@pytest.mark.parametrize(
    "options", [["--grad"], ["--grad", "--return-lse"], ["--sinks", "--grad-sinks"], ["--bias", "4,4", "--grad-bias"]]
)
def test_bench_runs_the_backward_pass(run: Run, options: list[str]) -> None:
    result = run("bench", *QUICK, *options, "--backend", "reference")
    assert result.exit_code == 0
    assert "Forward and backward" in result.stdout


def test_bench_prints_the_method_with_the_numbers(run: Run) -> None:
    shown = " ".join(run("bench", *QUICK, columns=160).stdout.split())
    for part in (TORCH, "reference", "p50", "Ratio", "alternating in one process", "garbage collector off"):
        assert part in shown, part


def test_bench_writes_two_files_where_told(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    result = run("bench", *QUICK, "--json", "--out", str(folder))
    assert sorted(path.name for path in folder.iterdir()) == ["bench.json", "bench.png"]
    assert json.loads((folder / "bench.json").read_text()) == json.loads(result.stdout)
    assert (folder / "bench.png").read_bytes().startswith(b"\x89PNG")


RAISES = """
def plan(self, request):
    def run(q, k, v, **tensors):
        raise RuntimeError("no [kernel] image")
    return run
"""


def test_a_backend_that_fails_is_reported_and_the_others_are_timed(run: Run, strangers: Path, load: Load) -> None:
    load(stranger(strangers, "xattn-fails", backend_source("fails", 1.0, body=RAISES)))
    document = run("bench", *QUICK, "--json")
    shown = run("bench", *QUICK)
    assert document.exit_code == shown.exit_code == 1
    document = json.loads(document.stdout)
    assert document["failures"] == {"fails": "RuntimeError: no [kernel] image"}
    assert set(document["candidates"]) == {TORCH, "reference"}
    assert "no [kernel] image" in shown.stdout


def test_bench_with_nothing_that_works(run: Run, strangers: Path, load: Load, tmp_path: Path) -> None:
    load(stranger(strangers, "xattn-fails", backend_source("fails", 1.0, body=RAISES)))
    result = run(
        "bench", *QUICK, "--softcap", "2", "--backend", "fails", "--json", "--out", str(tmp_path / "out"), columns=160
    )
    assert result.exit_code == 1
    assert json.loads(result.stdout)["candidates"] == {}
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["bench.json"]


@pytest.mark.parametrize(
    ("shape", "arguments"),
    [
        ({}, {}),
        ({}, {"causal": True}),
        ({}, {"scale": 0.3}),
        ({"nheads_k": 2}, {"causal": True}),
        ({"seqlen_k": 6}, {"causal": True, "align": "top_left"}),
        ({"seqlen_q": 1, "seqlen_k": 6, "nheads_k": 1}, {"causal": True}),
        ({"seqlen_q": 1, "seqlen_k": 6}, {"causal": True, "align": "top_left"}),
        ({}, {"bias": torch.linspace(-3, 3, 16).view(4, 4)}),
        ({}, {"mask": torch.eye(4).bool()}),
    ],
)
def test_torchs_own_call_means_the_same(shape: dict[str, int], arguments: dict[str, Any]) -> None:
    q, k, v = qkv(**shape, dtype=torch.float64)
    request = xattn.explain(q, k, v, **arguments).request
    tensors = {
        name: value.double() if name == "bias" else value
        for name, value in arguments.items()
        if isinstance(value, torch.Tensor)
    }
    native = torch_arguments(request, tensors)
    assert native is not None
    out = torch.nn.functional.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)), **native)
    exact = {name: value.numpy() if isinstance(value, torch.Tensor) else value for name, value in arguments.items()}
    expected, _ = rowwise.forward(Problem(dtype="float64", q=q.numpy(), k=k.numpy(), v=v.numpy(), **exact))
    # The bias of the call is float32 here and there; only its value counts.
    np.testing.assert_allclose(out.transpose(1, 2).numpy(), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("shape", "arguments"),
    [
        ({"seqlen_k": 6}, {"causal": True}),  # bottom-right
        ({}, {"window": (1, 0)}),
        ({}, {"softcap": 1.0}),
        ({}, {"sinks": torch.zeros(4)}),
        ({}, {"alibi_slopes": torch.ones(4)}),
        ({}, {"seqlens_k": torch.tensor([1, 4])}),
        ({}, {"return_lse": True}),
        ({}, {"deterministic": True}),
        ({}, {"causal": True, "mask": torch.ones(4, 4).bool()}),
        ({}, {"bias": torch.zeros(4, 4), "mask": torch.ones(4, 4).bool()}),
    ],
)
def test_torchs_own_call_is_left_out_where_it_has_no_words(shape: dict[str, int], arguments: dict[str, Any]) -> None:
    q, k, v = qkv(**shape)
    tensors = {name: value for name, value in arguments.items() if isinstance(value, torch.Tensor)}
    assert torch_arguments(xattn.explain(q, k, v, **arguments).request, tensors) is None


def test_durations() -> None:
    assert [duration(x) for x in (0.123, 12.3456, 1234.5, 2_500_000.0)] == ["0.123 us", "12.3 us", "1.23 ms", "2.5 s"]


# ---------------------------------------------------------------------------------------------------------------------
# Exit codes, streams, terminals
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [["explain", *SMALL], ["bench", *QUICK]])
def test_1_nobody_can_serve_the_call(run: Run, command: list[str], strangers: Path, load: Load) -> None:
    body = 'def limits(self, request): return [xattn.Reason("headdim", request.headdim, 64, "Pad it.")]'
    load(stranger(strangers, "xattn-picky", backend_source("picky", 1.0, body=body)))
    result = run(*command, "--backend", "picky")
    assert result.exit_code == 1
    shown = result.stdout if command[0] == "explain" else result.stderr
    for part in ("No backend can serve this call", "headdim: 8, supported: 64", "Pad it.", "not asked"):
        assert part in shown, part


def test_1_comes_with_the_json(run: Run, strangers: Path, load: Load) -> None:
    body = 'def limits(self, request): return [xattn.Reason("headdim", request.headdim, 64)]'
    load(stranger(strangers, "xattn-picky", backend_source("picky", 1.0, body=body)))
    result = run("explain", *SMALL, "--backend", "picky", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["backend"] is None


@pytest.mark.parametrize("command", ["explain", "bench"])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--shape", "1,2,3"], "4 whole numbers"),
        (["--shape", "1,2,3,x"], "4 whole numbers"),
        (["--shape", "1,2,3,-4"], "4 whole numbers"),
        ([*SMALL, "--shape-k", "2,4"], "3 whole numbers"),
        ([*SMALL, "--shape-k", "2,4,4", "--seqlen-k", "4"], "not beside"),
        ([*SMALL, "--nheads-k", "3"], "a divisor of nheads"),
        ([*SMALL, "--shape-k", "3,4,4"], "the batch of q"),
        ([*SMALL, "--window", "4"], "LEFT,RIGHT"),
        ([*SMALL, "--window", "-1,0"], "None is open"),
        ([*SMALL, "--align", "left"], "bottom_right"),
        ([*SMALL, "--softcap", "0"], "None switches it off"),
        ([*SMALL, "--scale", "nan"], "a finite float"),
        ([*SMALL, "--dropout", "1"], "[0, 1)"),
        ([*SMALL, "--bias", "5,5"], "broadcastable"),
        ([*SMALL, "--seqlens-k", "4"], "seqlens_k"),
        ([*SMALL, "--seqlens-k", "4,5"], "0 to seqlen_k"),
        ([*SMALL, "--dtype", "float33"], "no dtype"),
        ([*SMALL, "--dtype", "int32"], "floating-point"),
        ([*SMALL, "--grad-bias"], "there is no --bias"),
        ([*SMALL, "--backend", "referenc"], 'Did you mean "reference"'),
        ([*SMALL, "--backend", ""], "backend"),
        ([], "--shape"),
        ([*SMALL, "--no-such-option"], "--no-such-option"),
    ],
    ids=lambda value: " ".join(value[-2:]) if isinstance(value, list) else "",
)
def test_2_wrong_usage(run: Run, command: str, options: list[str], message: str) -> None:
    result = run(command, *options, "--json", columns=200)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_2_bench_on_a_device_that_is_not_here(run: Run) -> None:
    result = run("bench", *QUICK, "--device", "neuron")
    assert result.exit_code == 2
    assert "this machine can time calls on: cpu" in result.stderr


@pytest.mark.parametrize("command", [[], ["info"], ["explain"], ["bench"]])
def test_help_lists_the_exit_codes(run: Run, command: list[str]) -> None:
    result = run(*command, "--help")
    assert result.exit_code == 0
    lines = [line.strip() for line in result.stdout.splitlines()]
    assert "Exit codes" in lines
    for code in ("0  fine", "1  no backend can serve the call", "2  wrong usage"):
        assert any(line.startswith(code) for line in lines), code


@pytest.mark.parametrize("columns", [20, 40, 80, 250])
@pytest.mark.parametrize("command", [["info"], ["explain", *SMALL, "--device", "rocm"], ["bench", *QUICK], ["--help"]])
def test_any_width_of_terminal(run: Run, command: list[str], columns: int) -> None:
    result = run(*command, columns=columns)
    assert result.exit_code == 0
    assert result.stdout.strip()


def test_python_m_xattn_prints_json_alone() -> None:
    command = [sys.executable, "-m", "xattn", "info", "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    here = plain(report())
    there = json.loads(done.stdout)
    # The number of threads is this process's own affair.
    assert {**there, "devices": []} == {**here, "devices": []}


@pytest.mark.parametrize("missing", ["typer", "rich", "matplotlib"])
def test_2_on_a_plain_install(missing: str) -> None:
    hidden = f"import sys; sys.modules[{missing!r}] = None; from xattn.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", hidden], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == f"xattn's command line needs {missing}: pip install 'xattn[cli]'\n"


def test_importing_xattn_imports_nothing_of_the_command_line() -> None:
    code = "import sys, xattn; print([n for n in sys.modules if n.split('.')[0] in ('typer', 'rich', 'matplotlib')])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.stdout == "[]\n", done.stderr
