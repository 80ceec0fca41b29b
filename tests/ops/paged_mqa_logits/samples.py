"""Legal calls of `paged_mqa_logits`, no two of one kind; every word that a capability block may have is used by one."""

from __future__ import annotations

from typing import Any

import torch
from sample import Sample
from torch import Tensor

BLOCKS, BLOCK_SIZE, HEADDIM = 13, 4, 8
FP8 = torch.float8_e4m3fn


def indexed(
    lengths_q: tuple[int, ...] | None = (3, 0, 2),
    lengths_k: tuple[int, ...] = (6, 2, 9),
    nheads: int = 4,
    dtype: torch.dtype = torch.float32,
    columns: int = 3,
) -> tuple[Tensor, ...]:
    """q, the cache, weights, table, lengths and cu_seqlens_q, the same at every call: pages in no order, what no
    sequence has NaN, entries past the last page -1, one token of padding behind the last query. lengths_q None: one
    query each."""
    generator = torch.Generator().manual_seed(0)
    queries = (1,) * len(lengths_k) if lengths_q is None else lengths_q
    total_q = sum(queries) + (lengths_q is not None)
    q = torch.randn(total_q, nheads, HEADDIM, generator=generator).to(dtype)
    weights = torch.randn(total_q, nheads, generator=generator)
    cache = torch.full((BLOCKS, BLOCK_SIZE, 1, HEADDIM), float("nan")).to(dtype)
    table = torch.full((len(lengths_k), max(columns, *(-(-length // BLOCK_SIZE) for length in lengths_k))), -1)
    free = torch.randperm(BLOCKS, generator=generator).tolist()
    for b, length in enumerate(lengths_k):
        for j in range(0, length, BLOCK_SIZE):
            page = table[b, j // BLOCK_SIZE] = free.pop()
            count = min(BLOCK_SIZE, length - j)
            cache[page, :count, 0] = torch.randn(count, HEADDIM, generator=generator).to(dtype)
    found = (q, cache, weights, table.int(), torch.tensor(lengths_k, dtype=torch.int32))
    return found if lengths_q is None else (*found, torch.tensor((0, *lengths_q)).cumsum(0).int())


def scale() -> Tensor:
    return torch.linspace(0.5, 2, BLOCKS * BLOCK_SIZE).view(BLOCKS, BLOCK_SIZE, 1)


def samples(length: int = 5) -> dict[str, Sample]:
    """length: of the longest sequence of queries."""

    def made(named: dict[str, Any] | None = None, **sizes: Any) -> Sample:
        given = {"lengths_q": (length, 0, 3), "lengths_k": (length + 2, 2, 9), "columns": 6, **sizes}
        return Sample(indexed(**given), {"max_seqlen_k": length + 11, **(named or {})}, caches=(1,))

    one = made(lengths_q=None)
    stored = made({"k_scale": scale()}, dtype=FP8)
    return {
        "plain": made(),
        "float64": made(dtype=torch.float64),
        "one query": one,
        "scaled": Sample(stored.tensors, stored.named, caches=(0, 1)),
        "no keys": made({"max_seqlen_k": 0}, lengths_k=(0, 0, 0)),
    }
