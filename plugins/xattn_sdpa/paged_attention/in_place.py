"""One query a sequence over pages where they lie, on CUDA: each page is a sequence of its own for torch's flash kernel,
and the pages of a sequence are merged through lse. Nothing is gathered, and a page past the end costs next to nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from xattn_sdpa.paged_attention.seen import Seen
from xattn_sdpa.varlen_attention import flash
from xattn_sdpa.varlen_attention.sequences import Sequences

# Keys of the smallest page: the kernel loads that many and more at once.
_PAGE = 16
# Pages of one call. A launch has at most 65,535 sequences.
AT_ONCE = 2**14


@dataclass(frozen=True)
class Rows:
    """Both caches as (rows, nheads_k, headdim). Page p begins at row p * step."""

    k: Tensor
    v: Tensor
    step: int


def pays(block_size: int, pages: int) -> bool:
    """Whether it is faster than a gather. pages: of the longest sequence."""
    return block_size >= _PAGE and pages <= AT_ONCE


def rows(k_cache: Tensor, v_cache: Tensor) -> Rows | None:
    """The caches as rows, if their strides allow it, and the kernel takes them as they are."""
    blocks, block_size, nheads_k, headdim = k_cache.shape
    page, row = k_cache.stride()[:2]
    fits = k_cache.shape == v_cache.shape and headdim % 8 == 0 and row > 0 and page % row == 0
    if not fits or v_cache.stride(0) * row != v_cache.stride(1) * page:
        return None
    step = page // row
    count = (blocks - 1) * step + block_size
    if any(x.data_ptr() % 16 or any(n % 8 for n in x.stride()[:3]) for x in (k_cache, v_cache)) or count >= 2**31:
        return None
    k, v = (x.as_strided((count, nheads_k, headdim), (x.stride(1), x.stride(2), 1)) for x in (k_cache, v_cache))
    return Rows(k, v, step)


def attend(q: Tensor, where: Rows, keys: Seen, block_size: int, scale: float) -> tuple[Tensor, Tensor]:
    """out (batch, nheads, headdim) and lse (nheads, batch), without sinks."""
    batch, pages = keys.pages.shape
    column = keys.skipped.unsqueeze(1) + torch.arange(pages, dtype=torch.int32, device=q.device)
    begin, first = column * block_size, keys.first.unsqueeze(1)
    # Of the page's keys, [start, end) are seen.
    start = (first - begin).clamp_min(0)
    end = (keys.end.unsqueeze(1) - begin).clamp_max(block_size)
    starts = torch.cat(((keys.pages * where.step + start).flatten(), start.new_zeros(1)))
    ends_q = torch.arange(batch * pages + 1, dtype=torch.int32, device=q.device)
    found = Sequences(ends_q, starts, 1, block_size, None, None)
    used = (end - start).clamp_min(0).flatten()
    outs, lses = flash.attend(
        q.unsqueeze(1).expand(-1, pages, -1, -1).flatten(0, 1), where.k, where.v, found, scale, used
    )
    return _merged(outs.unflatten(0, (batch, pages)), lses.unflatten(1, (batch, pages)))


def _merged(outs: Tensor, lses: Tensor) -> tuple[Tensor, Tensor]:
    """outs: (batch, pages, nheads, headdim). lses: (nheads, batch, pages). A page without keys has 0 and -inf."""
    lse = lses.logsumexp(2)
    weights = torch.exp(lses - lse.masked_fill(lse == -torch.inf, 0.0).unsqueeze(2))
    out = (outs * weights.permute(1, 2, 0).unsqueeze(3)).sum(1)
    return out.to(outs.dtype), lse
