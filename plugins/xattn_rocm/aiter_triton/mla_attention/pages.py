"""`mla_prefill_fwd`: any mix of queries over the pages of their sequences."""

from __future__ import annotations

import torch
from torch import Tensor

from xattn import Capabilities, MlaKernel, MlaRequest, PagedBatch, Reason
from xattn.plugin import Plan
from xattn_rocm import graphs, vendor
from xattn_rocm.aiter_triton.mla_attention import common

MODULE = "aiter.ops.triton.attention.mla"


class PrefillMla(MlaKernel):
    name = "mla_prefill"
    capabilities = (
        Capabilities(
            device="rocm",
            dtypes=common.HALVES,
            features=frozenset({"causal", "out_dtype", "deterministic"}),
            # A page is a tile: of a power of 2, for a product of matrices, and within what a compute unit holds.
            sizes={"block_size": (16, 64, 16)},
            priority={"default": 70},
            checked=common.CHECKED,
        ),
    )

    def limits(self, request: MlaRequest) -> list[Reason]:
        found = page_reasons(request)
        if not request.causal and not request.one_query:
            hint = "aiter's kernels of latent attention assert that it is on."
            found.append(Reason("causal", False, "True, or one query a sequence", hint))
        return found

    def plan(self, request: MlaRequest) -> Plan:
        return common.placed(_plan(request))

    def kernel_name(self, request: MlaRequest) -> str:
        return f"{MODULE}.mla_prefill_fwd"


def page_reasons(request: MlaRequest) -> list[Reason]:
    """What stops the kernels to which a page is a tile."""
    found = common.limits(request, MODULE)
    if request.block_size & (request.block_size - 1):
        found.append(Reason("block_size", request.block_size, "16, 32 or 64"))
    return found


def _plan(request: MlaRequest) -> Plan:
    kernel = vendor.module(MODULE).mla_prefill_fwd
    rank, rope, scale = request.kv_lora_rank, request.rope_dim, request.scale
    dtype = request.out_dtype or request.dtype

    def run(q: Tensor, kv_cache: Tensor, batch: PagedBatch) -> Tensor:
        # Rows of no sequence are not written.
        out = torch.zeros((*q.shape[:2], rank), dtype=dtype, device=q.device)
        kernel(
            q=q,
            kv_buffer=kv_cache,
            out=out,
            cu_seqlens_q=batch.starts_q.contiguous(),
            seqused_k=batch.seqlens_k.contiguous(),
            max_seqlen_kv=batch.max_seqlen_k,
            block_tables=batch.block_table,
            softmax_scale=scale,
            kv_lora_rank=rank,
            qk_rope_head_dim=rope,
            causal=True,
            q_descale=None,
            kv_descale=None,
        )
        return out.masked_fill_(_dead(batch, len(q))[:, None, None], 0)

    return run


def _dead(batch: PagedBatch, total_q: int) -> Tensor:
    """(total_q,): which queries see no key; one that shares a tile with others comes out as NaN. Once a step; in a
    graph, which is replayed with other values, in each call."""

    def make() -> Tensor:
        token = torch.arange(total_q, dtype=torch.int32, device=batch.seqlens_k.device)
        sequence = torch.bucketize(token, batch.starts_q[1:], right=True).clamp_max(max(batch.batch - 1, 0))
        return batch.starts_q[1:][sequence] - token > batch.seqlens_k[sequence]

    return batch.derived(("aiter mla dead", total_q), make) if graphs.keeps() else make()
