"""`mqa_logits` and `paged_mqa_logits` in plain PyTorch: all logits of all heads, as the contract words them."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from xattn import (
    MqaLogitsKernel,
    MqaLogitsRequest,
    PagedBatch,
    PagedMqaLogitsKernel,
    PagedMqaLogitsRequest,
)
from xattn.plugin import Plan
from xattn.plugin.quantised import FP8
from xattn.plugin.symbolic import holds
from xattn_reference.block import everything
from xattn_reference.packed import places
from xattn_reference.paged_attention import taken
from xattn_reference.softmax import wide

_everything = everything(MqaLogitsRequest, fallback=True, checked="run on CPU")
_paged = everything(PagedMqaLogitsRequest, fallback=True, checked="run on CPU")


class ReferenceMqaLogits(MqaLogitsKernel):
    capabilities = (replace(_everything, dtypes=_everything.dtypes | FP8),)

    def plan(self, request: MqaLogitsRequest) -> Plan:
        return mqa_logits

    def kernel_name(self, request: MqaLogitsRequest) -> str:
        return "PyTorch matmul and relu"


class ReferencePagedMqaLogits(PagedMqaLogitsKernel):
    capabilities = (replace(_paged, dtypes=_paged.dtypes | FP8),)

    def plan(self, request: PagedMqaLogitsRequest) -> Plan:
        return paged_mqa_logits

    def kernel_name(self, request: PagedMqaLogitsRequest) -> str:
        return "PyTorch matmul and relu over the gathered keys"


def mqa_logits(
    q: Tensor, k: Tensor, weights: Tensor, starts: Tensor, ends: Tensor, *, k_scale: Tensor | None = None
) -> Tensor:
    """Shapes as in `xattn.mqa_logits`. Computes in float32, or in float64 for float64 tensors."""
    logits = _logits(q, k.to(wide(q)).t(), weights)
    if k_scale is not None:
        logits = logits * k_scale
    j = torch.arange(k.shape[0], device=q.device)
    seen = (j >= starts.unsqueeze(1)) & (j < ends.unsqueeze(1))
    return logits.float().masked_fill(~seen, -torch.inf)


def paged_mqa_logits(
    q: Tensor, k_cache: Tensor, weights: Tensor, batch: PagedBatch, *, k_scale: Tensor | None = None
) -> Tensor:
    """Shapes as in `xattn.paged_mqa_logits`. Nothing is read from the device: sizes are the bounds."""
    total_q, columns = q.shape[0], batch.max_seqlen_k
    if holds(batch.batch == 0) or holds(k_cache.shape[0] == 0) or holds(batch.block_table.shape[1] == 0):
        return q.new_full((total_q, columns), -torch.inf, dtype=torch.float32)
    sequence, place = places(batch.starts_q, total_q)
    own = sequence.clamp_max(batch.batch - 1)
    # Token t of n new ones sees the keys up to itself; one of no sequence sees none.
    last = (batch.seqlens_k - batch.seqlens_q).long()[own] + place + 1
    last = last.masked_fill(sequence == batch.batch, 0)
    j = torch.arange(columns, device=q.device)
    seen = j < last.unsqueeze(1)  # (total_q, columns)
    block_size = k_cache.shape[1]
    # No page is loaded for a key that a query does not see: its entry may be any number.
    column = (j // block_size).clamp_max(batch.block_table.shape[1] - 1)
    page = torch.where(seen, batch.block_table.long()[own][:, column], 0)
    keys = taken(k_cache, k_scale, page, (j % block_size).expand_as(page)).squeeze(2)  # (total_q, columns, headdim)
    return _logits(q, keys.to(wide(q)).mT, weights).float().masked_fill(~seen, -torch.inf)


def _logits(q: Tensor, keys: Tensor, weights: Tensor) -> Tensor:
    """(total_q, columns) of keys (headdim, columns), or (total_q, headdim, columns)."""
    scores = torch.relu(q.to(wide(q)) @ keys)  # (total_q, nheads, columns)
    return (weights.to(wide(q)).unsqueeze(1) @ scores).squeeze(1)
