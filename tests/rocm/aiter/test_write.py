"""aiter's kernel that writes pages, over the suite's cases in the dtypes that it takes, and in both orders."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from xattn_elsewhere.aiter.interpreter import in_reverse
from xattn_rocm.installation import usable
from xattn_rocm.rules import holds

import xattn

ALL = [torch.bfloat16] if holds("fused-write-bfloat16-alone", usable()) else [torch.bfloat16, torch.float32]


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("dtype", ALL, ids=str)
def test_rows_are_written_as_they_are(dtype: torch.dtype, reverse: bool) -> None:
    """fused-write-rotates-keys: NaN and inf too, beside -0.0. Pools of two strides, heads of two widths."""
    k, v = torch.randn(6, 2, 16).to(dtype), torch.randn(6, 2, 8).to(dtype)
    for new in (k, v):
        new[0, 0, :4] = torch.tensor([torch.inf, -torch.inf, torch.nan, -0.0])
    heads_first = torch.zeros(5, 2, 4, 16).to(dtype).transpose(1, 2)
    caches = [heads_first, torch.zeros(5, 4, 2, 8).to(dtype)]
    before = [cache.clone() for cache in caches]
    slots = torch.tensor([19, -1, 0, 7, -1, 5])
    with in_reverse() if reverse else nullcontext():
        xattn.write_kv(k, v, *caches, slots, backend="aiter-triton")
    for new, cache, old in zip((k, v), caches, before, strict=True):
        kept = slots >= 0
        old[slots[kept] // 4, slots[kept] % 4] = new[kept]
        torch.testing.assert_close(cache, old, rtol=0, atol=0, equal_nan=True)
        assert torch.equal(cache.nan_to_num().signbit(), old.nan_to_num().signbit())
