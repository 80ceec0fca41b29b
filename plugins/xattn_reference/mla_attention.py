"""`mla_attention`: paged attention whose values are a part of its keys, or each query over the slots that it names."""

from __future__ import annotations

import functools
from dataclasses import replace

import torch
from torch import Tensor

from xattn import AttentionOutput, MlaKernel, MlaRequest, PagedBatch, PagedRequest
from xattn.plugin import Plan
from xattn.plugin.quantised import FP8, columns
from xattn_reference import in_order
from xattn_reference.block import everything
from xattn_reference.paged_attention import paged_attention, taken
from xattn_reference.softmax import Scores, attend

_everything = everything(MlaRequest, fallback=True, checked="run on CPU")


class ReferenceMla(MlaKernel):
    capabilities = (replace(_everything, dtypes=_everything.dtypes | FP8),)

    def plan(self, request: MlaRequest) -> Plan:
        return functools.partial(mla_attention, request)

    def kernel_name(self, request: MlaRequest) -> str:
        how = "sums in one order" if request.batch_invariant else "matmul"
        return f"PyTorch {how} and exp over the gathered latents"


def mla_attention(
    request: MlaRequest,
    q: Tensor,
    kv_cache: Tensor,
    batch: PagedBatch,
    *,
    topk_indices: Tensor | None = None,
    sinks: Tensor | None = None,
    q_scale: Tensor | None = None,
    kv_scale: Tensor | None = None,
) -> Tensor | AttentionOutput:
    """Shapes as in `xattn.mla_attention`. Computes in float32, or in float64 for float64 tensors."""
    if q_scale is not None:
        q = q.float() * q_scale
    elif request.out_dtype is not None:
        q = q.to(request.out_dtype)
    if topk_indices is None:
        values = kv_cache[..., : columns(request.kv_lora_rank, kv_cache.dtype)]
        scales = {} if kv_scale is None else {"k_scale": kv_scale, "v_scale": kv_scale}
        found = paged_attention(_paged(request), q, kv_cache, values, batch, sinks=sinks, **scales)
        out, lse = found if isinstance(found, AttentionOutput) else (found, None)
    else:
        out, lse = _over_slots(request, q, kv_cache, batch, topk_indices, sinks, kv_scale)
    out = out.to(request.out_dtype or request.dtype)
    return AttentionOutput(out, lse) if request.return_lse and lse is not None else out


def _paged(request: MlaRequest) -> PagedRequest:
    """The call of `paged_attention` that it is, its dtypes aside."""
    own = {name: value for name, value in vars(request).items() if name not in ("topk", "q_scale", "kv_scale")}
    return PagedRequest(**{**own, "out_dtype": None})


def _over_slots(
    request: MlaRequest,
    q: Tensor,
    kv_cache: Tensor,
    batch: PagedBatch,
    topk_indices: Tensor,
    sinks: Tensor | None,
    kv_scale: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Each query is a batch row with keys of its own."""
    padding = torch.arange(q.shape[0], device=q.device) >= batch.starts_q[-1]
    visible = (topk_indices >= 0) & ~padding.unsqueeze(1)
    slots = torch.where(visible, topk_indices, 0).long()
    if kv_cache.shape[0] == 0:  # no slot to load in the place of none
        visible, slots = visible[:, :0], slots[:, :0]
    block_size = kv_cache.shape[1]
    keys = taken(kv_cache, kv_scale, slots // block_size, slots % block_size)  # (total_q, topk, 1, width)
    ordered = request.batch_invariant
    how = Scores(request.scale, request.softcap, visible[:, None, None], (), sinks, ordered)
    run = in_order.attend if ordered else attend
    out, lse = run(q.unsqueeze(1), keys, keys[..., : request.kv_lora_rank], how)
    # A row of padding has no sink.
    return out.squeeze(1), lse.squeeze(2).masked_fill(padding.unsqueeze(1), -torch.inf).t()
