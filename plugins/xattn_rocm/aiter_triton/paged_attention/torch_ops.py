"""A call as one torch operator, for torch.compile and torch.export: none of aiter's Python is traced. Eager calls go
past this module.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import xattn
from xattn import PagedBatch, PagedRequest
from xattn.plugin import Plan

_library = torch.library.Library("xattn_rocm", "FRAGMENT")
_library.define(
    "paged(Tensor q, Tensor k_cache, Tensor v_cache, Tensor block_table, Tensor seqlens_k, Tensor? cu_seqlens_q, "
    "Tensor? sinks, Tensor? alibi_slopes, Tensor? tree_mask, SymInt max_seqlen_q, SymInt max_seqlen_k, bool causal, "
    "SymInt? left, SymInt? right, float? scale, float? softcap, ScalarType? out_dtype, bool unseen_finite, "
    "str kernel) -> Tensor"
)
_paged = torch.ops.xattn_rocm.paged.default


def opaque(request: PagedRequest, kernel: str) -> Plan:
    """The plan of a call while torch.compile traces. kernel: its name."""
    left, right = request.window if request.window is not None else (None, None)
    options = (request.scale, request.softcap, request.out_dtype, request.unseen_finite, kernel)
    causal = request.causal

    def run(
        q: Tensor, k_cache: Tensor, v_cache: Tensor, batch: PagedBatch, *, sinks: Tensor | None = None,
        alibi_slopes: Tensor | None = None, tree_mask: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        tensors = (batch.block_table, batch.seqlens_k, batch.cu_seqlens_q, sinks, alibi_slopes, tree_mask)
        bounds = (batch.max_seqlen_q, batch.max_seqlen_k)
        out: Tensor = _paged(q, k_cache, v_cache, *tensors, *bounds, causal, left, right, *options)
        return out

    return run


def _impl(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, block_table: Tensor, seqlens_k: Tensor, cu_seqlens_q: Tensor | None,
    sinks: Tensor | None, alibi_slopes: Tensor | None, tree_mask: Tensor | None, max_seqlen_q: int, max_seqlen_k: int,
    causal: bool, left: int | None, right: int | None, scale: float | None, softcap: float | None,
    out_dtype: torch.dtype | None, unseen_finite: bool, kernel: str,
) -> Tensor:  # fmt: skip
    return xattn.paged_attention(
        q, k_cache, v_cache, block_table, seqlens_k, cu_seqlens_q, sinks=sinks, alibi_slopes=alibi_slopes,
        tree_mask=tree_mask, max_seqlen_q=max_seqlen_q, max_seqlen_k=max_seqlen_k, causal=causal,
        window=None if left is None and right is None else (left, right), scale=scale, softcap=softcap,
        out_dtype=out_dtype, unseen_finite=unseen_finite, backend=f"aiter-triton.{kernel}",
    )  # fmt: skip


def _fake(q: Tensor, k_cache: Tensor, v_cache: Tensor, *rest: Any) -> Tensor:
    out_dtype = rest[-3]
    return q.new_empty(*q.shape[:2], v_cache.shape[3], dtype=out_dtype or q.dtype)


# ROCm's tensors have CUDA's key; an emulation's are on the CPU.
for _key in ("CPU", "CUDA"):
    _library.impl("paged", _impl, _key)
torch.library.register_fake("xattn_rocm::paged", _fake, lib=_library)
