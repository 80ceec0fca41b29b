"""`aiter.mha_batch_prefill_func`: what it serves, and its plan."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from xattn import AttentionOutput, Capabilities, PagedBatch, PagedKernel, PagedRequest, Reason
from xattn.plugin import Plan
from xattn_rocm import graphs, vendor
from xattn_rocm.aiter.attention.limits import environment_reasons, scale_reasons, sinks_reasons
from xattn_rocm.aiter.paged_attention import tables
from xattn_rocm.aiter.varlen_attention.kernel import traced_reasons
from xattn_rocm.aiter.varlen_attention.rows import dead_rows, fill
from xattn_rocm.installation import Installation, installation, usable
from xattn_rocm.rules import holds

# The pages that CK has kernels for. Others are taken apart into keys.
_PAGES = (1, 16, 1024)
# More keys than a sequence can have, so that sums with it stay within 32 bits.
_ALL = 2**30


def _block(archs: set[str], priority: int) -> Capabilities[Any]:
    return Capabilities(
        device="rocm",
        dtypes=frozenset({torch.float16, torch.bfloat16}),
        features=frozenset(
            {
                "causal",
                "window",
                "bottom_right",
                "gqa",
                "headdim_v",
                "softcap",
                "sinks",
                "alibi_slopes",
                "deterministic",
                "return_lse",
            }
        ),
        sizes={"headdim": (8, 256, 8), "headdim_v": (8, 256, 8)},
        archs=frozenset(archs),
        priority={"default": priority},
        checked="against a stand-in for aiter written from its sources; never on an AMD GPU",
    )


class AiterPrefill(PagedKernel):
    # As `attention`. Decoding with few sequences `aiter-triton` splits the keys, and CK does not.
    capabilities = (_block({"gfx942", "gfx950"}, 80), _block({"gfx90a", "gfx1201", "gfx1250"}, 40))
    name = "mha_batch_prefill_func"

    def limits(self, request: PagedRequest) -> list[Reason]:
        installed = installation()
        if isinstance(installed, Reason):
            return [installed]
        found = [*traced_reasons(), *environment_reasons(request, installed), *scale_reasons(request)]
        if request.sinks is not None:
            found += sinks_reasons(request, installed)
        if request.softcap is not None and request.alibi_slopes is not None:
            # ck-softcap-drops-slopes-and-bias
            found.append(Reason("softcap", request.softcap, "off beside alibi_slopes", "CK ignores it there."))
        if request.alibi_slopes is not None and max(request.max_seqlen_q, request.max_seqlen_k) > 2**16:
            # ck-alibi-of-16-bits
            found.append(Reason("alibi_slopes", "longer bounds", f"up to {2**16} queries and keys"))
        size = request.num_blocks * request.block_size * request.nheads_k * request.headdim * request.dtype.itemsize
        if size >= 2**31 and request.arch not in ("gfx942", "gfx950"):
            # prefill-2-gib
            found.append(Reason("k_cache", f"{size / 2**30:.1f} GiB", "less than 2 GiB outside gfx942 and gfx950"))
        if request.arch == "gfx950" and (torch.version.hip or "").startswith("7.2") and _unaided(request):
            # prefill-rocm72-gfx950
            hint = "ROCm 7.2's compiler makes wrong code of it, by aiter's own tests: another ROCm does."
            found.append(Reason("causal", "without softcap, on ROCm 7.2", "another ROCm", hint))
        return found

    def plan(self, request: PagedRequest) -> Plan:
        return _plan(request, usable())

    def kernel_name(self, request: PagedRequest) -> str:
        form = "CSR of keys" if _by_keys(request, usable()) else "block_table"
        return f"aiter.mha_batch_prefill_func (CK, by {form})"


def _unaided(request: PagedRequest) -> bool:
    return request.band[1] == 0 and request.softcap is None


def _by_keys(request: PagedRequest, installed: Installation) -> bool:
    """Whether pages are described as keys: where CK has none of their size, and to releases without a block_table."""
    return request.block_size not in _PAGES or holds("prefill-no-block-table", installed)


def _plan(request: PagedRequest, installed: Installation) -> Plan:
    kernel = vendor.module("aiter").mha_batch_prefill_func
    left, right = request.band
    left = None if left is None else min(left, _ALL)
    by_keys, block_size = _by_keys(request, installed), request.block_size
    # CK counts a side as open by its bound of keys, and does nothing else with that. A window that hides nothing keeps
    # ALiBi counted from the diagonal (ck-causal-alibi-lse).
    bound = max(request.max_seqlen_k, 2, (right or 0) + 1)
    window = (-1 if left is None else left, -1 if right is None else right)
    if request.alibi_slopes is not None and window == (-1, 0):
        window = (bound - 1, 0)
    options: dict[str, Any] = {
        "softmax_scale": request.softmax_scale,
        "logits_soft_cap": request.softcap or 0.0,
        "causal": right == 0,
        "window_size": window,
        "return_lse": request.return_lse,
    }
    key = ("aiter keys" if by_keys else "aiter pages", block_size, left)
    make = tables.of_keys if by_keys else tables.of_pages

    def run(
        q: Tensor,
        k_cache: Tensor,
        v_cache: Tensor,
        batch: PagedBatch,
        *,
        sinks: Tensor | None = None,
        alibi_slopes: Tensor | None = None,
    ) -> Tensor | AttentionOutput:
        found = (
            batch.derived(key, lambda: make(batch, block_size, left))
            if graphs.keeps()
            else make(batch, block_size, left)
        )
        k, v = _laid_out(k_cache, by_keys), _laid_out(v_cache, by_keys)
        more: dict[str, Any] = {}
        if not by_keys:
            more = {"block_table": found.indices, "seqlen_k": found.lengths}
        if sinks is not None:
            more["sink_ptr"] = sinks
        returned = kernel(
            q, k, v, found.starts, found.indptr, found.indices.flatten(), max(batch.max_seqlen_q, 1), bound,
            alibi_slopes=None if alibi_slopes is None else alibi_slopes.contiguous(), **options, **more,
        )  # fmt: skip
        out, lse = returned if isinstance(returned, tuple) else (returned, None)
        dead, nobodys = dead_rows(found.starts, batch.seqlens_k, len(q), right)
        out, lse = fill(out, lse, dead, nobodys, sinks, in_place=True)
        return out if lse is None else AttentionOutput(out, lse)

    return run


def _laid_out(cache: Tensor, by_keys: bool) -> Tensor:
    """As CK takes it: the heads of a key in order and the keys of a page after one another, at multiples of 16 bytes. A
    pool that lies otherwise is copied (prefill-strides)."""
    _, block_size, nheads, width = cache.shape
    page, key, head = cache.stride()[:3]
    fits = head >= width and key >= nheads * head and page >= block_size * key
    if not fits or any(each % 8 for each in (page, key, head)) or (by_keys and page != block_size * key):
        cache = cache.contiguous()
    return cache.flatten(0, 1) if by_keys else cache
