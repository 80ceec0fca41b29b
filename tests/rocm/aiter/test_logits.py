"""aiter's logits of an indexer, against `reference`."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import xattn

FP8 = torch.float8_e4m3fnuz  # of gfx942


def indexed(total_q: int, total_k: int, nheads: int = 16, headdim: int = 32) -> tuple[Tensor, ...]:
    torch.manual_seed(0)
    q, k = (torch.randn(*shape).to(FP8) for shape in ((total_q, nheads, headdim), (total_k, headdim)))
    starts = torch.randint(-9, total_k, (total_q,), dtype=torch.int32)
    ends = starts + torch.randint(-3, total_k, (total_q,), dtype=torch.int32)
    return q, k, torch.randn(total_q, nheads), starts, ends, torch.rand(total_k) + 0.5


@pytest.mark.parametrize("total_k", [7, 128, 300])
def test_the_logits_are_the_contracts(total_k: int) -> None:
    """mqa-logits-unaligned-start: ranges that begin and end anywhere, before the keys, past them, or before they
    begin."""
    *args, scale = indexed(12, total_k)
    got, want = (xattn.mqa_logits(*args, k_scale=scale, backend=each) for each in ("aiter-triton", "reference"))
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-4)
    assert (want == -torch.inf).any()
    assert (want > -torch.inf).any()


def test_other_memory() -> None:
    q, k, weights, starts, ends, scale = indexed(5, 40)
    want = xattn.mqa_logits(q, k, weights, starts, ends, k_scale=scale, backend="aiter-triton")
    q = q.transpose(0, 1).contiguous().transpose(0, 1)
    weights = weights.t().contiguous().t()
    pairs = [torch.stack([x, x + 1], -1)[:, 0] for x in (starts, ends, scale)]
    got = xattn.mqa_logits(q, k, weights, *pairs[:2], k_scale=pairs[2], backend="aiter-triton")
    assert torch.equal(got, want)
