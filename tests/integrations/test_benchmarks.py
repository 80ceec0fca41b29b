"""The benchmarks of transformers' models run, and what they count is what they promise."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from support import ROOT

pytestmark = pytest.mark.extended


@pytest.fixture(autouse=True)
def _benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")


def test_pi0(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Before and after, and how far each is from eager attention."""
    import pi0  # type: ignore[import-not-found]

    small = {**pi0.HEADS, "hidden_size": 64, "intermediate_size": 64}
    for name, value in {"PREFIX": 24, "SUFFIX": 5, "STEPS": 2, "FIRST": small, "SECOND": small}.items():
        monkeypatch.setattr(pi0, name, value)
    monkeypatch.setattr(
        "sys.argv", ["pi0.py", "--device", "cpu", "--dtype", "float32", "--layers", "2", "--seconds", "1"]
    )
    pi0.main()
    printed = capsys.readouterr().out
    off = {name: float(value) for name, value in re.findall(r"^(\w+): off by (\S+)", printed, re.M)}
    assert off.keys() == {"eager", "sdpa", "xattn", "optimized"}
    assert max(off.values()) <= 1e-4
    assert len(re.findall(r" ms a step ", printed)) == 4


@torch.no_grad()
def test_copies_and_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface  # type: ignore[import-not-found]

    rows: list[Any] = [*huggingface._copies(), huggingface._compiled(4)]
    assert [row.met for row in rows] == [True] * 3
