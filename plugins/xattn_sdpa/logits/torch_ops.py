"""The engine as torch operators: opaque to torch.compile and FakeTensor, so that a graph serves every step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from xattn import PagedBatch
from xattn_sdpa.logits import engine

_library = torch.library.Library("xattn_sdpa", "FRAGMENT")
_library.define("logits(Tensor q, Tensor k, Tensor weights, Tensor starts, Tensor ends, Tensor? k_scale) -> Tensor")
_library.define(
    "paged_logits(Tensor q, Tensor k_cache, Tensor weights, Tensor block_table, Tensor seqlens_k, "
    "Tensor? cu_seqlens_q, Tensor? k_scale, SymInt max_seqlen_k) -> Tensor"
)
mqa_logits = torch.ops.xattn_sdpa.logits.default
_paged = torch.ops.xattn_sdpa.paged_logits.default


def paged_mqa_logits(q: Tensor, k_cache: Tensor, weights: Tensor, batch: PagedBatch, k_scale: Tensor | None) -> Tensor:
    parts = (batch.block_table, batch.seqlens_k, batch.cu_seqlens_q)
    found: Tensor = _paged(q, k_cache, weights, *parts, k_scale, batch.max_seqlen_k)
    return found


def _paged_impl(q: Tensor, k_cache: Tensor, weights: Tensor, *args: Any) -> Tensor:
    *parts, k_scale, width = args
    batch = PagedBatch(*parts, max_seqlen_q=q.shape[0], max_seqlen_k=width)
    return engine.paged_mqa_logits(q, k_cache, weights, batch, k_scale)


def _fake(q: Tensor, k: Tensor, *rest: Any) -> Tensor:
    return q.new_empty(q.shape[0], k.shape[0], dtype=torch.float32)


def _paged_fake(q: Tensor, *rest: Any) -> Tensor:
    return q.new_empty(q.shape[0], rest[-1], dtype=torch.float32)


_library.impl("logits", engine.mqa_logits, "CPU")
_library.impl("paged_logits", _paged_impl, "CPU")
torch.library.register_fake("xattn_sdpa::logits", _fake, lib=_library)
torch.library.register_fake("xattn_sdpa::paged_logits", _paged_fake, lib=_library)
