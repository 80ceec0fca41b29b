"""Each query over the slots that it names, some queries at a time: a batch row with keys of its own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from xattn_sdpa.attention import engine as dense
from xattn_sdpa.attention.engine import Settings
from xattn_sdpa.paged_attention.store import Store

# Bytes of latents that are gathered at once.
_BYTES = 2**22

_library = torch.library.Library("xattn_sdpa", "FRAGMENT")
_library.define(
    "slots(Tensor q, Tensor kv_cache, Tensor topk_indices, Tensor? cu_seqlens_q, Tensor? sinks, Tensor? kv_scale, "
    "float scale, float? softcap) -> (Tensor, Tensor)"
)
_slots = torch.ops.xattn_sdpa.slots.default


def forward(
    q: Tensor,
    kv_cache: Tensor,
    topk_indices: Tensor,
    cu_seqlens_q: Tensor | None,
    sinks: Tensor | None,
    kv_scale: Tensor | None,
    settings: Settings,
) -> tuple[Tensor, Tensor]:
    """out (total_q, nheads, headdim), of values as wide as keys, and lse (nheads, total_q), wide. Rows of q past the
    last sequence get 0 and -inf."""
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    out, lse = q.new_zeros(q.shape), q.new_full((q.shape[1], len(q)), -torch.inf, dtype=wide)
    tokens = len(q) if cu_seqlens_q is None else int(cu_seqlens_q[-1])
    store = Store(kv_cache, kv_scale, q.dtype)
    topk = topk_indices.shape[1] if kv_cache.shape[0] else 0
    at_once = max(1, _BYTES // max(1, topk * q.shape[2] * q.itemsize))
    for first in range(0, tokens, at_once):
        rows = slice(first, min(first + at_once, tokens))
        named = topk_indices[rows, :topk].long()
        none = named < 0
        keys = store.at(named.clamp_min(0))
        mask = None
        if bool(none.any()):
            # What the place of none is filled from may hold NaN, which a weight of 0 does not hide.
            keys[none] = 0
            mask = ~none[:, None, None]
        tensors = (q[rows].unsqueeze(1), keys, keys, sinks, None, None, mask)
        found, found_lse = dense.forward(tensors, None, settings)
        out[rows], lse[:, rows] = found.squeeze(1), found_lse.squeeze(2).t()
    return out, lse


def attend(
    q: Tensor,
    kv_cache: Tensor,
    topk_indices: Tensor,
    cu_seqlens_q: Tensor | None,
    sinks: Tensor | None,
    kv_scale: Tensor | None,
    settings: Settings,
) -> tuple[Tensor, Tensor]:
    """As `forward`, of tensors that may stand for others."""
    tensors = (q, kv_cache, topk_indices, cu_seqlens_q, sinks, kv_scale)
    found: tuple[Tensor, Tensor] = _slots(*tensors, settings.scale, settings.softcap)
    return found


def _impl(q: Tensor, kv_cache: Tensor, topk_indices: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    starts, sinks, kv_scale, scale, softcap = args
    settings = Settings(None, None, None, scale, softcap)
    return forward(q, kv_cache, topk_indices, starts, sinks, kv_scale, settings)


def _fake(q: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    return q.new_empty(q.shape), q.new_empty(q.shape[1], q.shape[0], dtype=wide)


_library.impl("slots", _impl, "CPU")
torch.library.register_fake("xattn_sdpa::slots", _fake, lib=_library)
