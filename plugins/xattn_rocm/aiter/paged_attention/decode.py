"""Decode by aiter's assembly, `pa_fwd_asm`, or by its HIP kernel, `paged_attention_rocm`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from xattn import Capabilities, PagedBatch, PagedKernel, PagedRequest, Reason
from xattn.plugin import Plan, dtype_name
from xattn.plugin.formats import FormattedCache
from xattn_rocm import graphs, vendor
from xattn_rocm.aiter.attention.limits import environment_reasons
from xattn_rocm.aiter.paged_attention import tables
from xattn_rocm.aiter.paged_attention.choice import Kernel, asm_reasons, hip_reasons, kind, precision, prefers_asm
from xattn_rocm.aiter.varlen_attention.kernel import traced_reasons
from xattn_rocm.installation import Installation, installation, usable
from xattn_rocm.rules import holds

_PARTITION = 256


class AiterDecode(PagedKernel):
    capabilities = (
        Capabilities(
            device="rocm",
            dtypes=frozenset({torch.float16, torch.bfloat16}),
            # One query a sequence sees all keys, causal or not.
            features=frozenset({"causal", "bottom_right", "gqa", "alibi_slopes", "k_scale", "v_scale", "format"}),
            sizes={"headdim": (64, 256, 64), "headdim_v": (64, 256, 64)},
            archs=frozenset({"gfx942", "gfx950"}),
            priority={"default": 90},
            checked="against a stand-in for aiter written from its sources; never on an AMD GPU",
        ),
    )
    name = "paged_attention_common"

    def limits(self, request: PagedRequest) -> list[Reason]:
        installed = installation()
        if isinstance(installed, Reason):
            return [installed]
        found = [*traced_reasons(), *environment_reasons(request, installed), *_shared(request)]
        if not found and isinstance(chosen := _chosen(request, installed), list):
            found += chosen
        return found

    def plan(self, request: PagedRequest) -> Plan:
        chosen = _chosen(request, usable())
        return _asm(request) if chosen == "asm" else _hip(request)

    def kernel_name(self, request: PagedRequest) -> str:
        if _chosen(request, usable()) == "hip":
            return "aiter.paged_attention_rocm (HIP)"
        level = f", high_precision={precision()}" if kind(request.cache_dtype, request.arch) == "fp8" else ""
        return f"aiter.pa_fwd_asm (ASM{level})"


def _shared(request: PagedRequest) -> list[Reason]:
    found = []
    if not request.one_query:
        found.append(Reason("cu_seqlens_q", "given", "None: one query a sequence"))
    if kind(request.cache_dtype, request.arch) == "":
        found.append(Reason("k_cache", dtype_name(request.cache_dtype), f"int8, or what FP8 is on {request.arch}"))
    for name in ("k_scale", "v_scale"):
        scale = getattr(request, name)
        if scale is not None and (len(scale.shape) != 3 or scale.shape[2] != request.nheads_k):
            # pa-asm-scales
            found.append(Reason(name, scale, "(num_blocks, block_size, nheads_k)"))
    return found


def _chosen(request: PagedRequest, installed: Installation) -> Kernel | list[Reason]:
    """aiter's choice; where that one cannot serve exactly, the other; where neither can, what stops the first, or the
    assembly, which alone reads quantised pages."""
    asm, hip = asm_reasons(request, holds("pa-asm-block-65536", installed)), hip_reasons(request)
    order: list[tuple[Kernel, list[Reason]]] = [("asm", asm), ("hip", hip)]
    if not prefers_asm(request):
        order.reverse()
    for kernel, reasons in order:
        if not reasons:
            return kernel
    return order[0][1] if request.k_scale is None else asm


def _table(batch: PagedBatch, block_size: int) -> tables.Tables:
    key = ("aiter pages", block_size, None)
    if graphs.keeps():
        return batch.derived(key, lambda: tables.of_pages(batch, block_size, None))
    return tables.of_pages(batch, block_size, None)


def _finished(out: Tensor, batch: PagedBatch) -> Tensor:
    """Of a sequence without keys neither kernel says what it writes (pa-length-0)."""
    return out.masked_fill_((batch.seqlens_k == 0)[:, None, None], 0.0)


def _asm(request: PagedRequest) -> Plan:
    kernel = vendor.module("aiter").pa_fwd_asm
    block_size, level = request.block_size, precision()

    def run(
        q: Tensor,
        k_cache: FormattedCache,
        v_cache: FormattedCache,
        batch: PagedBatch,
        *,
        k_scale: Tensor | None = None,
        v_scale: Tensor | None = None,
    ) -> Tensor:
        found = _table(batch, block_size)
        q = q.contiguous()
        out = torch.empty_like(q)
        kernel(
            q, k_cache.memory, v_cache.memory, found.indices, found.lengths, found.indices.stride(0), 1,
            _by_heads(k_scale), _by_heads(v_scale), out, None, level,
        )  # fmt: skip
        return _finished(out, batch)

    return run


def _by_heads(scale: Tensor | None) -> Tensor | None:
    """(num_blocks, nheads_k, block_size), as a cache in a format has them: else a copy (pa-asm-scales)."""
    return None if scale is None else scale.transpose(1, 2).contiguous()


def _hip(request: PagedRequest) -> Plan:
    kernel = vendor.module("aiter").paged_attention_rocm
    block_size, nheads_k, scale = request.block_size, request.nheads_k, request.softmax_scale

    def run(
        q: Tensor,
        k_cache: FormattedCache,
        v_cache: FormattedCache,
        batch: PagedBatch,
        *,
        alibi_slopes: Tensor | None = None,
    ) -> Tensor:
        found = _table(batch, block_size)
        q = q.contiguous()
        sizes = (*q.shape[:2], -(-max(batch.max_seqlen_k, 1) // _PARTITION))
        sums, logits = (torch.empty(sizes, dtype=torch.float32, device=q.device) for _ in range(2))
        parts, out = q.new_empty((*sizes, q.shape[2])), torch.empty_like(q)
        slopes: Any = None if alibi_slopes is None else alibi_slopes.contiguous()
        kernel(
            out, sums, logits, parts, q, k_cache.memory, v_cache.memory, nheads_k, scale, found.indices, found.lengths,
            block_size, batch.max_seqlen_k, slopes, "auto", None, None,
        )  # fmt: skip
        return _finished(out, batch)

    return run
