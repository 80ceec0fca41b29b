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
    "Tensor? sinks, Tensor? alibi_slopes, Tensor? tree_mask, Tensor? align, Tensor? k_scale, "
    "Tensor? v_scale, SymInt max_seqlen_q, SymInt max_seqlen_k, SymInt? left, SymInt? right, "
    "SymInt? offset, float scale, float? softcap) -> (Tensor, Tensor)"
)
_paged = torch.ops.xattn_sdpa.paged.default


def forward(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, batch: PagedBatch, options: Options, settings: Settings
) -> tuple[Tensor, Tensor]:
    """As the engine's, of plain tensors, on whatever device they are."""
    if q.is_cuda:
        return flash.forward(q, *options.stores(k_cache, v_cache, q.dtype), batch, options.sinks, settings)
    return engine.forward(q, k_cache, v_cache, batch, options, settings)


def _impl(q: Tensor, k_cache: Tensor, v_cache: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    batch = PagedBatch(*args[:3], max_seqlen_q=args[9], max_seqlen_k=args[10])
    out, lse = forward(q, k_cache, v_cache, batch, Options(*args[3:9]), Settings(*args[11:]))
    return out, lse.contiguous()


def _fake(q: Tensor, k_cache: Tensor, v_cache: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    total_q, nheads, _ = q.shape
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    headdim_v = Options().stores(k_cache, v_cache, q.dtype)[1].headdim
    return q.new_empty(total_q, nheads, headdim_v), q.new_empty(nheads, total_q, dtype=wide)


for _key in ("CPU", "CUDA"):
    _library.impl("paged", _impl, _key)
torch.library.register_fake("xattn_sdpa::paged", _fake, lib=_library)


def attend(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, batch: PagedBatch, options: Options, settings: Settings
) -> tuple[Tensor, Tensor]:
    """As `forward`, of tensors that may stand for others."""
    tensors = (batch.block_table, batch.seqlens_k, batch.cu_seqlens_q)
    scales = (options.k_scale, options.v_scale)
    optional = (options.sinks, options.alibi_slopes, options.tree_mask, options.align, *scales)
    bounds = (batch.max_seqlen_q, batch.max_seqlen_k)
    numbers = (settings.left, settings.right, settings.offset, settings.scale, settings.softcap)
    found: tuple[Tensor, Tensor] = _paged(q, k_cache, v_cache, *tensors, *optional, *bounds, *numbers)
    return found
