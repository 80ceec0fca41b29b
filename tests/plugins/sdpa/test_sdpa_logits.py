"""An indexer's logits by `sdpa`, some rows at a time, against `reference`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ops.mqa_logits.samples import indexed
from ops.paged_mqa_logits.samples import FP8, scale
from ops.paged_mqa_logits.samples import indexed as paged
from xattn_sdpa.logits import engine

import xattn


@pytest.fixture(autouse=True, params=[1, 150, 2**19])
def some_rows(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """One row at a time, a few, and all."""
    monkeypatch.setattr(engine, "_SCORES", request.param)


def both(function: Any, *args: Any, **options: Any) -> None:
    got, want = (function(*args, backend=backend, **options) for backend in ("sdpa", "reference"))
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    assert torch.equal(got == -torch.inf, want == -torch.inf)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, FP8])
def test_of_ranges(dtype: torch.dtype) -> None:
    options = {"k_scale": torch.linspace(0.5, 2, 23)} if dtype == FP8 else {}
    both(xattn.mqa_logits, *indexed(17, 23, dtype=dtype), **options)


@pytest.mark.parametrize("dtype", [torch.float32, FP8])
@pytest.mark.parametrize("lengths_q", [None, (3, 0, 9), (8, 2, 1)])
def test_of_pages(lengths_q: tuple[int, ...] | None, dtype: torch.dtype) -> None:
    """More queries than keys too, which see none at first."""
    options = {"k_scale": scale()} if dtype == FP8 else {}
    both(xattn.paged_mqa_logits, *paged(lengths_q, (6, 2, 9), dtype=dtype), max_seqlen_k=11, **options)
