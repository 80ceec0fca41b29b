"""The engine as a torch operator: opaque to torch.compile and FakeTensor, so that a graph serves every step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from xattn import PagedBatch
from xattn_sdpa.attention.engine import Settings
from xattn_sdpa.paged_attention import engine, flash
from xattn_sdpa.paged_attention.engine import Options

_library = torch.library.Library("xattn_sdpa", "FRAGMENT")
_library.define(
    "paged(Tensor q, Tensor k_cache, Tensor v_cache, Tensor block_table, Tensor seqlens_k, Tensor? cu_seqlens_q, "
    "Tensor? sinks, Tensor? alibi_slopes, Tensor? tree_mask, Tensor? align, SymInt max_seqlen_q, SymInt max_seqlen_k, "
    "SymInt? left, SymInt? right, SymInt? offset, float scale, float? softcap) -> (Tensor, Tensor)"
)
_paged = torch.ops.xattn_sdpa.paged.default


def forward(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, batch: PagedBatch, options: Options, settings: Settings
) -> tuple[Tensor, Tensor]:
    """As the engine's, of plain tensors, on whatever device they are."""
    if q.is_cuda:
        return flash.forward(q, k_cache, v_cache, batch, options.sinks, settings)
    return engine.forward(q, k_cache, v_cache, batch, options, settings)


def _impl(q: Tensor, k_cache: Tensor, v_cache: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    batch = PagedBatch(*args[:3], max_seqlen_q=args[7], max_seqlen_k=args[8])
    out, lse = forward(q, k_cache, v_cache, batch, Options(*args[3:7]), Settings(*args[9:]))
    return out, lse.contiguous()


def _fake(q: Tensor, k_cache: Tensor, v_cache: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    total_q, nheads, _ = q.shape
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    return q.new_empty(total_q, nheads, v_cache.shape[3]), q.new_empty(nheads, total_q, dtype=wide)


for _key in ("CPU", "CUDA"):
    _library.impl("paged", _impl, _key)
torch.library.register_fake("xattn_sdpa::paged", _fake, lib=_library)


def attend(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, batch: PagedBatch, options: Options, settings: Settings
) -> tuple[Tensor, Tensor]:
    """As `forward`, of tensors that may stand for others."""
    tensors = (batch.block_table, batch.seqlens_k, batch.cu_seqlens_q)
    optional = (options.sinks, options.alibi_slopes, options.tree_mask, options.align)
    bounds = (batch.max_seqlen_q, batch.max_seqlen_k)
    numbers = (settings.left, settings.right, settings.offset, settings.scale, settings.softcap)
    found: tuple[Tensor, Tensor] = _paged(q, k_cache, v_cache, *tensors, *optional, *bounds, *numbers)
    return found
