"""One query a sequence: `mla_decode_fwd`, and `decode_attention_fwd`, which returns the lse and loads nothing past a
length."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from xattn import AttentionOutput, Capabilities, MlaKernel, MlaRequest, PagedBatch, Reason
from xattn.plugin import Plan
from xattn_rocm import vendor
from xattn_rocm.aiter_triton.mla_attention import common, pages

MODULE = "aiter.ops.triton.attention.mla_decode"
# Keys of a part, and the most parts.
_PART, _PARTS = 256, 16
# From this width of a key on aiter multiplies element by element on AMD's GPUs, in the dtype of q.
_WIDE = 576


class DecodeMla(MlaKernel):
    """`mla_decode_fwd`, which splits the keys over the card."""

    name = "mla_decode"
    capabilities = (
        Capabilities(
            device="rocm",
            dtypes=common.HALVES,
            features=frozenset({"causal", "out_dtype", "deterministic"}),
            sizes={"block_size": (16, 64, 16)},
            priority={"default": 72},
            checked=common.CHECKED,
        ),
    )

    def limits(self, request: MlaRequest) -> list[Reason]:
        return pages.page_reasons(request) + _one_query(request)

    def plan(self, request: MlaRequest) -> Plan:
        kernel = vendor.module(pages.MODULE).mla_decode_fwd
        options: dict[str, Any] = {
            "softmax_scale": request.scale,
            "kv_lora_rank": request.kv_lora_rank,
            "qk_rope_head_dim": request.rope_dim,
            "causal": True,
            "q_descale": None,
            "kv_descale": None,
        }
        dtype, rank = request.out_dtype or request.dtype, request.kv_lora_rank

        def run(q: Tensor, kv_cache: Tensor, batch: PagedBatch) -> Tensor:
            out = torch.empty((*q.shape[:2], rank), dtype=dtype, device=q.device)
            lengths = batch.seqlens_k.contiguous()
            bounds = {"seqused_k": lengths, "max_seqlen_kv": batch.max_seqlen_k, "block_tables": batch.block_table}
            kernel(q=q, kv_buffer=kv_cache, out=out, cu_seqlens_q=batch.starts_q, **bounds, **options)
            return out.masked_fill_((lengths == 0)[:, None, None], 0)

        return common.placed(run)

    def kernel_name(self, request: MlaRequest) -> str:
        return f"{pages.MODULE}.mla_decode_fwd, which splits the keys"


class GroupedDecodeMla(MlaKernel):
    """`decode_attention_fwd`."""

    name = "decode_attention"
    capabilities = (
        Capabilities(
            device="rocm",
            dtypes=common.HALVES,
            features=frozenset({"causal", "softcap", "stale_pages", "out_dtype", "deterministic", "return_lse"}),
            priority={"default": 65},
            checked=common.CHECKED,
        ),
    )

    def limits(self, request: MlaRequest) -> list[Reason]:
        found = common.limits(request, MODULE) + _one_query(request)
        elements = request.num_blocks * request.block_size * request.headdim
        if elements >= 2**31:
            hint = "The kernel counts the elements of the cache in 32 bits."
            found.append(Reason("num_blocks", request.num_blocks, "a cache of fewer than 2^31 elements", hint))
        return found

    def plan(self, request: MlaRequest) -> Plan:
        return common.placed(_grouped(request))

    def kernel_name(self, request: MlaRequest) -> str:
        return f"{MODULE}.decode_attention_fwd, which splits the keys"


def _one_query(request: MlaRequest) -> list[Reason]:
    if request.one_query:
        return []
    hint = "The kernel takes the counts of queries for equal ones, which nobody reads."
    return [Reason("cu_seqlens_q", "given", "None: one query a sequence", hint)]


def _grouped(request: MlaRequest) -> Plan:
    kernel = vendor.module(MODULE).decode_attention_fwd
    rank, scale, softcap = request.kv_lora_rank, request.scale, request.softcap or 0.0
    dtype, return_lse = request.out_dtype or request.dtype, request.return_lse
    parts = max(1, min(_PARTS, request.max_seqlen_k // _PART))
    wide = request.headdim >= _WIDE

    def run(q: Tensor, kv_cache: Tensor, batch: PagedBatch) -> Tensor | AttentionOutput:
        rows, nheads, _ = q.shape
        cache = common.one_by_one(kv_cache)
        out = torch.empty((rows, nheads, rank), dtype=dtype, device=q.device)
        lse = torch.empty((rows, nheads), dtype=torch.float32, device=q.device)
        logits = torch.empty((rows, nheads, parts, rank + 1), dtype=torch.float32, device=q.device)
        kernel(
            q=q.float() if wide else q,
            k_buffer=cache,
            v_buffer=cache[..., :rank],
            o=out,
            lse=lse,
            req_to_token=batch.block_table,
            b_seq_len=batch.seqlens_k,
            attn_logits=logits,
            num_kv_splits=parts,
            sm_scale=scale,
            page_size=cache.shape[1],
            logit_cap=softcap,
        )
        none = (batch.seqlens_k == 0).unsqueeze(1)
        out.masked_fill_(none.unsqueeze(2), 0)
        return AttentionOutput(out, lse.masked_fill_(none, -torch.inf).t()) if return_lse else out

    return run
