"""SlowBackendWarning: once, with the reasons, for a large problem that `auto` gives to a slow backend."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
import torch

import xattn
from xattn.dispatch.selection import LARGE
from xattn.testing import fresh

# No backend but the reference drops out on the CPU.
DROPOUT: dict[str, Any] = {"dropout_p": 0.1}


def qkv(scores: int, seqlen_q: int | None = None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """q, k, v with so many scores."""
    seqlen_q = math.isqrt(scores) if seqlen_q is None else seqlen_q
    q, k = torch.zeros(1, seqlen_q, 1, 1), torch.zeros(1, scores // seqlen_q, 1, 1)
    assert q.shape[1] * k.shape[1] == scores
    return q, k, k


def test_a_large_call_warns_once() -> None:
    q, k, v = qkv(LARGE)
    with pytest.warns(xattn.SlowBackendWarning) as caught:
        xattn.attention(q, k, v, **DROPOUT)
    assert len(caught) == 1
    # The same again, larger ones and other shapes: the reasons are the same, so it is known by now.
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        xattn.attention(q, k, v, **DROPOUT)
        xattn.plan(*qkv(4 * LARGE), **DROPOUT)
        xattn.plan(*qkv(LARGE, seqlen_q=1), **DROPOUT)


def test_the_warning_says_who_why_and_where() -> None:
    q, k, v = qkv(LARGE)
    with pytest.warns(xattn.SlowBackendWarning) as caught:
        xattn.plan(q, k, v, **DROPOUT)
    text = str(caught[0].message)
    assert "reference" in text
    assert f"{LARGE:,}" in text
    rejected = [each for each in xattn.explain(q, k, v, **DROPOUT).candidates if each.reasons]
    faster = [each for each in rejected if all(reason.code != "device" for reason in each.reasons)]
    assert "sdpa" in [each.name for each in faster]
    for each in faster:
        assert each.name in text
        for reason in each.reasons:
            assert str(reason) in text
    # Backends of other devices are no news.
    assert all(each.name not in text for each in rejected if each not in faster)


def test_the_warning_points_at_the_caller() -> None:
    q, k, v = qkv(LARGE)
    with pytest.warns(xattn.SlowBackendWarning) as caught:
        xattn.attention(q, k, v, **DROPOUT)
    assert caught[0].filename == __file__
    with fresh(), pytest.warns(xattn.SlowBackendWarning) as caught:
        xattn.plan(q, k, v, **DROPOUT)
    assert caught[0].filename == __file__


def test_no_warning_below_the_limit() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        xattn.plan(*qkv(LARGE - 1, seqlen_q=1), **DROPOUT)


def test_no_warning_where_a_fast_backend_serves() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        xattn.plan(*qkv(LARGE))


def test_no_warning_for_a_backend_asked_for() -> None:
    q, k, v = qkv(LARGE)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        xattn.plan(q, k, v, **DROPOUT, backend="reference")
        xattn.plan(q, k, v, **DROPOUT, backend=("sdpa", "reference"))
        with xattn.use_backend("reference"):
            xattn.plan(q, k, v, **DROPOUT)
        xattn.explain(q, k, v, **DROPOUT)
