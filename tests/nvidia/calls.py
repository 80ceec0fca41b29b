"""What the tests of the plugin share: tensors, and calls."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

import xattn


def qkv(*sizes: int, headdim: int = 64, headdim_v: int | None = None, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """sizes: seqlen_q and seqlen_k, of 2 rows, 4 heads and 2 key-value heads."""
    draw = torch.Generator().manual_seed(seed)
    seqlen_q, seqlen_k = sizes
    shapes = ((2, seqlen_q, 4, headdim), (2, seqlen_k, 2, headdim), (2, seqlen_k, 2, headdim_v or headdim))
    q, k, v = (torch.randn(shape, generator=draw).bfloat16() for shape in shapes)
    return q, k, v


def packed(*lengths: int, rows: int | None = None, seed: int = 0) -> tuple[Tensor, ...]:
    """q, k, v and cu_seqlens of sequences of these lengths, in `rows` rows."""
    draw = torch.Generator().manual_seed(seed)
    starts = torch.tensor([0, *lengths]).cumsum(0).int()
    total = int(starts[-1]) if rows is None else rows
    q, k, v = (torch.randn(total, heads, 64, generator=draw).bfloat16() for heads in (4, 2, 2))
    return q, k, v, starts


def right(given: Any, expected: Any) -> None:
    """That a result is the reference's, to the rounding of bfloat16."""
    torch.testing.assert_close(given, expected, atol=0.02, rtol=0.02, equal_nan=True, check_dtype=False)


def declined(backend: str, op: Any, *args: Any, **options: Any) -> set[str]:
    """The codes of what stops a backend; empty where it serves the call."""
    (candidate,) = [
        each for each in xattn.explain(op, *args, backend=backend, **options).candidates if each.name == backend
    ]
    return {reason.code for reason in candidate.reasons}


def pages(block_size: int, lengths: list[int], queries: list[int] | None = None) -> tuple[Tensor, ...]:
    """A pool of pages, of which every slot that holds no key is NaN, and the batch. queries: one each where None."""
    draw = torch.Generator().manual_seed(0)
    columns = -(-max(lengths) // block_size)
    table = torch.randperm(len(lengths) * columns, generator=draw).view(len(lengths), columns).int()
    k, v = (torch.full((table.numel(), block_size, 2, 64), math.nan).bfloat16() for _ in range(2))
    for b, length in enumerate(lengths):
        for j in range(length):
            for cache in (k, v):
                cache[table[b, j // block_size], j % block_size] = torch.randn(2, 64, generator=draw).bfloat16()
        table[b, -(-length // block_size) :] = -1
    total = len(lengths) if queries is None else sum(queries)
    batch = (table, torch.tensor(lengths, dtype=torch.int32))
    starts = () if queries is None else (torch.tensor([0, *queries]).cumsum(0).int(),)
    return (torch.randn(total, 4, 64, generator=draw).bfloat16(), k, v, *batch, *starts)
