"""`unified_attention_sparse_mla`: each query over the slots that it names."""

from __future__ import annotations

import torch
from torch import Tensor

from xattn import Capabilities, MlaKernel, MlaRequest, PagedBatch, Reason
from xattn.plugin import Plan
from xattn_rocm import vendor
from xattn_rocm.aiter_triton.mla_attention import common
from xattn_rocm.installation import installation, usable

MODULES = {
    "flat": "aiter.ops.triton.unified_attention_sparse_mla",
    "attention": "aiter.ops.triton.attention.unified_attention_sparse_mla",
}
# Slots in a tile of the kernel's, as large as what it takes for a page, and query heads in one.
_TILE, _LEAST, _HEADS = 64, 16, 16


class SparseMla(MlaKernel):
    name = "sparse_mla"
    capabilities = (
        Capabilities(
            device="rocm",
            dtypes=common.HALVES,
            features=frozenset({"topk_indices", "stale_pages", "out_dtype", "deterministic"}),
            priority={"default": 70},
            checked=common.CHECKED,
        ),
    )

    def limits(self, request: MlaRequest) -> list[Reason]:
        installed = installation()
        layout = "attention" if isinstance(installed, Reason) else installed.layout
        found = common.limits(request, MODULES[layout])
        if request.topk is None:
            found.append(Reason("topk_indices", None, "a list of slots for each query"))
        if request.nheads % _HEADS:
            hint = "Past the last 16 heads the kernel writes nothing."
            found.append(Reason("nheads", request.nheads, f"a multiple of {_HEADS}", hint))
        if request.num_blocks * request.block_size < _LEAST:
            found.append(Reason("num_blocks", request.num_blocks, f"a cache of {_LEAST} slots at least"))
        return found

    def plan(self, request: MlaRequest) -> Plan:
        return common.placed(_plan(request))

    def kernel_name(self, request: MlaRequest) -> str:
        return f"{MODULES[usable().layout]}.unified_attention_sparse_mla"


def _plan(request: MlaRequest) -> Plan:
    kernel = vendor.module(MODULES[usable().layout]).unified_attention_sparse_mla
    rank, scale, dtype = request.kv_lora_rank, request.scale, request.out_dtype or request.dtype
    tile = _TILE
    while tile > request.num_blocks * request.block_size:
        tile //= 2

    def run(q: Tensor, kv_cache: Tensor, batch: PagedBatch, *, topk_indices: Tensor) -> Tensor:
        lists, alone = _begun(topk_indices)
        # Rows of no sequence are not written.
        out = torch.zeros((*q.shape[:2], rank), dtype=dtype, device=q.device)
        kernel(
            q=q,
            kv=common.uniform(kv_cache, tile),
            out=out,
            cu_seqlens_q=batch.starts_q.contiguous(),
            max_seqlen_q=batch.max_seqlen_q,
            seqused_k=batch.seqlens_k,
            max_seqlen_k=batch.max_seqlen_k,
            softmax_scale=scale,
            topk_indices=lists,
            block_table=batch.block_table,
            kv_lora_rank=rank,
        )
        return out.masked_fill_(alone[:, None, None], 0)

    return run


def _begun(topk_indices: Tensor) -> tuple[Tensor, Tensor]:
    """The lists with a slot in the first place, where there is one, and which have none: a tile of -1 alone, at the
    beginning, counts as a score of 0 for the ones after it, and 0 is divided by 0 in a list of -1 alone."""
    best, at = topk_indices.max(1, keepdim=True)
    lists = topk_indices.scatter(1, at, topk_indices[:, :1])
    lists[:, :1] = best
    return lists, best.squeeze(1) < 0
