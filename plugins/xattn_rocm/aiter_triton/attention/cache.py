"""BSNH keys and values as the paged cache of `unified_attention`, as they lie: a page starts wherever its table says.

Entries of the table are counted in u = gcd(row stride, page stride), and the kernel is told that pages lie u apart. So
no layout needs a copy, unless k and v differ in theirs.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

# The most keys in a tile of the kernel's.
_TILE_MAX = 64


@dataclass(frozen=True)
class CacheLayout:
    """How the kernel finds its way in k and v as they lie.

    copies: k and v lie in memory so differently that one table cannot serve both; both are copied.
    k, v:   shape and strides of the first page, and the distance of two: all that the kernel asks of a cache.
    table:  block_table (batch, pages and a tile more, which the kernel reads and does not follow).
    starts: cu_seqlens_q (batch + 1,). lengths: seqused_k (batch,). Both int32.
    low:    sinks (nheads,) that weigh nothing. Without any, the kernel takes 0 for the maximum of a tile that is
            hidden altogether, and scores below -104 vanish beside it.
    """

    copies: bool
    k: tuple[tuple[int, ...], tuple[int, ...]]
    v: tuple[tuple[int, ...], tuple[int, ...]]
    table: Tensor
    starts: Tensor
    lengths: Tensor
    low: Tensor


def cache_layout(q: Tensor, k: Tensor, v: Tensor, page: int) -> CacheLayout:
    copies = _places(k, page) != _places(v, page)
    if copies:
        k, v = k.contiguous(), v.contiguous()
    batch, seqlen_k = k.shape[:2]
    row, step = _places(k, page)
    pages = -(-seqlen_k // page) + _TILE_MAX // page + 1
    count = functools.partial(torch.arange, dtype=torch.int32, device=k.device)
    # Entries alone must fit: the kernel multiplies them in 64 bits.
    wide = torch.int32 if batch * row + pages * step < 2**31 else torch.int64
    return CacheLayout(
        copies=copies,
        k=_first_page(k, page),
        v=_first_page(v, page),
        table=count(batch, dtype=wide).unsqueeze(1) * row + count(pages, dtype=wide) * step,
        starts=count(batch + 1) * q.shape[1],
        lengths=torch.full((batch,), seqlen_k, dtype=torch.int32, device=k.device),
        low=torch.full((q.shape[2],), -1e30, device=k.device),
    )


def _unit(x: Tensor, page: int) -> int:
    """The distance of two pages as the kernel is told, u, in elements."""
    return math.gcd(x.stride(0), x.stride(1) * page) or 1


def _places(x: Tensor, page: int) -> tuple[int, int]:
    """The distance of two batch rows and of two pages, in units."""
    return x.stride(0) // _unit(x, page), x.stride(1) * page // _unit(x, page)


def _first_page(x: Tensor, page: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return (1, page, x.shape[2], x.shape[3]), (_unit(x, page), *x.stride()[1:])
