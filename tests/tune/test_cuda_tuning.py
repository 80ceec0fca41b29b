"""On a GPU: whose time is measured, and a table from `xattn tune` to `auto`."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import xattn
from xattn.cli.app import app
from xattn.dispatch.tables.environment import here
from xattn.measure import alternate, once
from xattn.testing import fresh

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.version.hip is not None, reason="needs an NVIDIA GPU"
)

HOST_US = 300.0


def slow_to_issue() -> torch.Tensor:
    """A kernel of some microseconds, that the CPU takes 300 us to issue."""
    x = torch.ones(1024, device="cuda")
    end = time.perf_counter() + HOST_US / 1e6
    while time.perf_counter() < end:
        pass
    return x + x


def test_device_time_is_the_gpus_alone_and_eager_time_has_the_host_in_it() -> None:
    device = torch.device("cuda")
    times = {
        mode: alternate({"call": slow_to_issue}, device=device, mode=mode, rounds=20).p50("call")
        for mode in ("device", "eager")
    }  # fmt: skip
    assert times["device"] < 0.3 * HOST_US
    assert times["eager"] > HOST_US
    assert once(slow_to_issue, device, "eager") > HOST_US


def test_the_environment_of_a_gpu_names_it() -> None:
    found = here("cuda")
    assert found is not None
    assert found.card == torch.cuda.get_device_name()
    assert found.arch is not None
    assert found.arch.startswith("sm_")
    assert found.versions.keys() == {"torch", "cudnn", "driver"}
    assert found.key.startswith("cuda-")
    assert here("rocm") is None


@pytest.mark.parametrize("mode", ["device", "eager"])
def test_what_is_measured_is_what_auto_takes(mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XATTN_TABLES", str(tmp_path))
    call = ["attention", "q=1,1024,16,64", "k=1,1024,4,64", "v=1,1024,4,64", "causal=true"]
    result = CliRunner().invoke(app, ["tune", *call, "--mode", mode, "--seconds", "0.1", "--json"])
    assert result.exit_code == 0, result.output
    (measured,) = json.loads(result.stdout)["measured"]
    best = min(measured["p50_us"].values())
    with fresh():
        q = torch.randn(1, 1024, 16, 64, device="cuda", dtype=torch.bfloat16)
        k = torch.randn(1, 1024, 4, 64, device="cuda", dtype=torch.bfloat16)
        told = xattn.explain(q, k, k, causal=True)
        assert told.measured is not None
        assert told.measured.exact
        assert told.measured.mode == mode
        assert told.backend is not None
        assert measured["p50_us"][told.backend] <= 1.03 * best
