"""Where pages lie and what their numbers mean: the keys, or the values, of a call."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from xattn.plugin.quantised import INT4, as_bytes, dequantised, scale_at
from xattn_sdpa.paged_attention.tables import numbers


@dataclass(frozen=True)
class Store:
    """cache: (num_blocks, block_size, nheads_k, columns). scale: of a quantised one, as in `paged_attention`. dtype: of
    the keys that the kernel gets."""

    cache: Tensor
    scale: Tensor | None
    dtype: torch.dtype

    @property
    def block_size(self) -> int:
        return self.cache.shape[1]

    @property
    def headdim(self) -> int:
        return self.cache.shape[3] * (2 if self.cache.dtype == INT4 else 1)

    def buffer(self, pages: int) -> Tensor | None:
        """Room for so many pages at once, where they need no other than that."""
        return self.cache.new_empty(pages, *self.cache.shape[1:]) if self.scale is None else None

    def take(self, pages: Tensor, buffer: Tensor | None = None, in_order: bool = False) -> Tensor:
        """(len(pages), block_size, nheads_k, headdim), new or in the buffer: quantised pages are made numbers as they
        are gathered, and no others are. in_order: the pages lie one after the other, and are a part of the cache."""
        if self.scale is None:
            if in_order:
                return self.cache.narrow(0, int(pages[0]), len(pages)).to(self.dtype)
            found = torch.index_select(self.cache, 0, pages, out=buffer if buffer is None else buffer[: len(pages)])
            return found.to(self.dtype)
        stored = as_bytes(self.cache).index_select(0, pages)
        whole = self.cache.dtype == torch.int8
        found = stored.view(torch.int8).float() if whole else numbers(stored, self.cache.dtype)
        return found.mul_(self._scale_of(pages)).to(self.dtype)

    def at(self, slots: Tensor) -> Tensor:
        """(*slots.shape, nheads_k, headdim), new: what lies in these slots, none below 0."""
        block, place = slots // self.block_size, slots % self.block_size
        if self.scale is None:
            return self.cache[block, place].to(self.dtype)
        stored = as_bytes(self.cache)[block, place].view(self.cache.dtype)
        return dequantised(stored, scale_at(self.scale, block, place), self.dtype)

    def _scale_of(self, pages: Tensor) -> Tensor:
        assert self.scale is not None
        if self.scale.dim() < 2:
            return self.scale.unsqueeze(-1) if self.scale.dim() else self.scale
        rows = self.scale.index_select(0, pages)
        return rows[:, None, :, None] if rows.dim() == 2 else rows.unsqueeze(-1)
