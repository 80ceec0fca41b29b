"""Which pages and keys the queries of a step see, by operations on the device alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Seen:
    """pages: (batch, n) int32, n in a row of each sequence, the first `skipped` of its table left out; 0 for one of
    which no key is seen. A query sees no key before `first` and from `end` on, (batch,) int32 each, as is `skipped`."""

    pages: Tensor
    skipped: Tensor
    first: Tensor
    end: Tensor


def count(most: int, block_size: int, left: int | None, max_seqlen_q: int) -> int:
    """In how many pages the keys lie that a sequence of up to `most` may see."""
    pages = -(-most // block_size)
    # So many keys in a row lie in no more pages, wherever they begin.
    return pages if left is None else min(pages, -(-(max_seqlen_q + left) // block_size) + 1)


def seen(
    block_table: Tensor, seqlens_k: Tensor, seqlens_q: Tensor, block_size: int, pages: int, left: int | None
) -> Seen:
    """pages: as `count` has them. left: the side of the band, counted from the bottom right."""
    columns = block_table.shape[1]
    first = torch.zeros_like(seqlens_k)
    if left is not None:
        first = (seqlens_k - seqlens_q - min(left, columns * block_size)).clamp_min(0)
    skipped = first // block_size
    column = skipped.unsqueeze(1) + torch.arange(pages, dtype=torch.int32, device=block_table.device)
    # No page is loaded for a key that no query sees: its entry may be any number.
    shown = (column * block_size < seqlens_k.unsqueeze(1)) & (seqlens_q > 0).unsqueeze(1)
    page = torch.where(shown, block_table.gather(1, column.clamp_max(columns - 1).long()), 0)
    return Seen(page, skipped, first, seqlens_k)
