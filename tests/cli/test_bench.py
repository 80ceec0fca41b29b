"""`xattn bench`: who is timed, against whom, and that torch's own call means the same."""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cli.command_line import SMALL, Run
from support import Load, backend_source, qkv, stranger
from xattn_conformance.ops.attention import rowwise
from xattn_conformance.ops.attention.problem import Problem

import xattn
from xattn.cli.candidates import TORCH, torch_arguments
from xattn.cli.units import duration

Q, K, V = qkv()

QUICK = [*SMALL, "--seconds", "0.02"]


@pytest.fixture(scope="module", autouse=True)
def _small_heap() -> Iterator[None]:
    """A measurement begins by collecting garbage: a second in a process that holds what other tests left."""
    gc.freeze()
    yield
    gc.unfreeze()


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


def request_of(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, arguments: dict[str, Any]) -> xattn.AttentionRequest:
    request = xattn.explain(q, k, v, **arguments).request
    assert isinstance(request, xattn.AttentionRequest)
    return request


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
def test_torchs_own_call_means_the_same(shape: dict[str, Any], arguments: dict[str, Any]) -> None:
    q, k, v = qkv(**shape, dtype=torch.float64)
    tensors = {
        name: value.double() if name == "bias" else value
        for name, value in arguments.items()
        if isinstance(value, torch.Tensor)
    }
    native = torch_arguments(request_of(q, k, v, arguments), tensors)
    assert native is not None
    qt, kt, vt = (x.transpose(1, 2) for x in (q, k, v))
    out = torch.nn.functional.scaled_dot_product_attention(qt, kt, vt, **native)
    exact: dict[str, Any] = {
        name: value.numpy() if isinstance(value, torch.Tensor) else value for name, value in arguments.items()
    }
    expected, _ = rowwise.forward(Problem(dtype="float64", q=q.numpy(), k=k.numpy(), v=v.numpy(), **exact))
    # The bias of the call is float32 here and there; only its value counts.
    np.testing.assert_allclose(out.transpose(1, 2).numpy(), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("shape", "arguments"),
    [
        ({"seqlen_k": 6}, {"causal": True}),  # bottom-right
        ({}, {"causal": True, "align": 1}),
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
def test_torchs_own_call_is_left_out_where_it_has_no_words(shape: dict[str, Any], arguments: dict[str, Any]) -> None:
    q, k, v = qkv(**shape)
    tensors = {name: value for name, value in arguments.items() if isinstance(value, torch.Tensor)}
    assert torch_arguments(request_of(q, k, v, arguments), tensors) is None


SLOW = """
def plan(self, request):
    def run(q, k, v, **tensors):
        time.sleep(0.1)
        return torch.full_like(q, 1.0)
    import time
    return run
"""


def test_what_takes_longer_than_the_time_given_is_called_once(run: Run, strangers: Path, load: Load) -> None:
    load(stranger(strangers, "xattn-slow", backend_source("slow", 1.0, body=SLOW)))
    start = time.perf_counter()
    result = run("bench", *QUICK, "--json")
    document = json.loads(result.stdout)
    assert set(document["once_us"]) == {"slow"}
    assert document["once_us"]["slow"] >= 1e5
    assert set(document["candidates"]) == {TORCH, "reference"}
    assert "One call of each of 3, then about 0.02 s of rounds." in result.stderr
    assert time.perf_counter() - start < 5  # 12 calls of each were far more
    shown = run("bench", *QUICK, columns=80).stdout
    assert "one call" in shown
    assert "Called once, since one call takes longer than --seconds: slow." in shown


def test_the_least_that_it_takes_is_said_first(run: Run, strangers: Path, load: Load) -> None:
    load(stranger(strangers, "xattn-slow", backend_source("slow", 1.0, body=SLOW)))
    result = run("bench", *SMALL, "--backend", "slow", "--seconds", "0.3", "--json")
    assert "A warm-up and 3 rounds are the least: about 4" in result.stderr


def test_names_and_times_are_whole_at_80_columns(run: Run) -> None:
    shown = run("bench", *QUICK, columns=80).stdout
    for name, kernel in json.loads(run("bench", *QUICK, "--json").stdout)["kernels"].items():
        assert name in shown
        for word in kernel.split():
            assert word in shown, word


def test_durations() -> None:
    known = {
        0.0: "0 us",
        0.123: "0.123 us",
        12.3456: "12.3 us",
        999.4: "999 us",
        999.6: "1 ms",
        1234.5: "1.23 ms",
        1.04e6: "1.04 s",
        2_500_000.0: "2.5 s",
        1.04e9: "1040 s",
    }
    assert {each: duration(each) for each in known} == known
