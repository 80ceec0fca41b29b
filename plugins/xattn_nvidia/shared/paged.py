"""A vendor's kernel over pages as a torch operator, opaque to torch.compile. Nothing is read from the device."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from xattn import PagedBatch
from xattn.plugin.tensors import is_plain
from xattn_nvidia.shared import sequences
from xattn_nvidia.shared.settings import NUMBERS, Settings, signed


class Vendor(Protocol):
    """A vendor's function. scale > 0, and no size is 0. What rows of no sequence get is not looked at."""

    @staticmethod
    def paged_forward(
        q: Tensor, k_cache: Tensor, v_cache: Tensor, sinks: Tensor | None, batch: PagedBatch, settings: Settings
    ) -> tuple[Tensor, Tensor]:
        """out, and lse (nheads, total_q)."""
        ...


_INPUTS = (
    "Tensor q, Tensor k_cache, Tensor v_cache, Tensor? sinks, Tensor block_table, Tensor seqlens_k, "
    "Tensor? cu_seqlens_q, SymInt max_seqlen_q, SymInt max_seqlen_k"
)
_library = torch.library.Library("xattn_nvidia", "FRAGMENT")


class PagedOps:
    """The operator `xattn_nvidia::<backend>_paged_forward`."""

    def __init__(self, backend: str, vendor: Vendor) -> None:
        self._vendor = vendor
        name = f"{backend}_paged_forward"
        _library.define(f"{name}({_INPUTS}, {NUMBERS}) -> (Tensor, Tensor)")
        # A stand-in's tensors are on the CPU.
        for key in ("CPU", "CUDA"):
            _library.impl(name, self._forward_impl, key)
        torch.library.register_fake(f"xattn_nvidia::{name}", _forward_fake, lib=_library)
        self._op = getattr(torch.ops.xattn_nvidia, name).default

    def call(
        self, q: Tensor, k_cache: Tensor, v_cache: Tensor, sinks: Tensor | None, batch: PagedBatch, settings: Settings
    ) -> tuple[Tensor, Tensor]:
        """out and lse (nheads, total_q)."""
        if not torch.compiler.is_compiling() and all(map(is_plain, (q, k_cache, v_cache))):
            return self._forward(q, k_cache, v_cache, sinks, batch, settings)
        tensors = (batch.block_table, batch.seqlens_k, batch.cu_seqlens_q)
        bounds = (batch.max_seqlen_q, batch.max_seqlen_k)
        found: tuple[Tensor, Tensor] = self._op(q, k_cache, v_cache, sinks, *tensors, *bounds, *settings)
        return found

    def _forward(
        self, q: Tensor, k_cache: Tensor, v_cache: Tensor, sinks: Tensor | None, batch: PagedBatch, settings: Settings
    ) -> tuple[Tensor, Tensor]:
        starts = batch.cu_seqlens_q
        if 0 in (len(q), len(k_cache), batch.batch, batch.block_table.shape[1], batch.max_seqlen_q):
            out = q.new_zeros(*q.shape[:2], v_cache.shape[3])
            lse = torch.full((q.shape[1], len(q)), -torch.inf, device=q.device)
            lse = lse if sinks is None else lse.copy_(sinks[:, None])
        else:
            given, scale = signed(q, settings.scale)
            found = self._vendor.paged_forward(given, k_cache, v_cache, sinks, batch, settings._replace(scale=scale))
            out, lse = found
        if starts is not None:
            # The kernels do not write the rows behind the last sequence.
            behind = sequences.behind(len(q), starts)
            out = out.masked_fill_(behind[:, None, None], 0)
            lse = lse.masked_fill_(behind, -torch.inf)
        return out, lse

    def _forward_impl(self, q: Tensor, k_cache: Tensor, v_cache: Tensor, sinks: Tensor | None, *others: Any) -> Any:
        batch = PagedBatch(*others[:3], max_seqlen_q=others[3], max_seqlen_k=others[4])
        out, lse = self._forward(q, k_cache, v_cache, sinks, batch, Settings(*others[5:]))
        return out, lse.contiguous()


def _forward_fake(q: Tensor, k_cache: Tensor, v_cache: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    total_q, nheads, _ = q.shape
    return q.new_empty(total_q, nheads, v_cache.shape[3]), q.new_empty(nheads, total_q, dtype=torch.float32)
