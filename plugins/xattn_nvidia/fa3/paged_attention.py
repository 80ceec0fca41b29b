"""`paged_attention` by FlashAttention-3: what it serves, and its plan. Nothing is read from the device."""

from __future__ import annotations

import torch
from torch import Tensor

from xattn import AttentionOutput, Capabilities, PagedBatch, PagedKernel, PagedRequest, Reason
from xattn.plugin import Plan
from xattn.plugin.symbolic import holds
from xattn_nvidia.fa3 import limits, ops, vendor
from xattn_nvidia.fa3.installation import ARCHS, has, installation, usable
from xattn_nvidia.shared.settings import Settings

# The kernel loads pages whole where they are as large as a tile of its keys, of at least so many, and the queries of a
# group fill more than a tile of queries, of at least so many.
_TILE_K, _TILE_Q = 64, 64


class Fa3Paged(PagedKernel):
    capabilities = (
        Capabilities(
            device="cuda",
            dtypes=frozenset({torch.float16, torch.bfloat16}),
            features=frozenset(
                {
                    "causal",
                    "window",
                    "bottom_right",
                    "gqa",
                    "softcap",
                    "stale_pages",
                    "deterministic",
                    "return_lse",
                    "empty",
                }
            ),
            sizes={"headdim": (8, 256, 8), "headdim_v": (8, 256, 8)},
            archs=ARCHS,
            priority={"default": 60},
            checked="run on an NVIDIA H100, torch 2.11: a build of commit 0251105a without softcap",
        ),
    )

    def limits(self, request: PagedRequest) -> list[Reason]:
        installed = installation()
        if isinstance(installed, Reason):
            return [installed]
        found = []
        if not has("PAGEDKV"):
            found.append(Reason("op", "paged_attention", "attention", limits.BUILT))
        if not has("VARLEN"):
            found.append(Reason("seqlens_k", "lengths", "attention of one length", limits.BUILT))
        whole = holds(request.block_size >= _TILE_K) and holds(request.max_seqlen_q * request.group > _TILE_Q)
        if whole and not request.unseen_finite:
            want = f"unseen_finite=True, or pages of fewer than {_TILE_K} keys"
            hint = "Here the kernel loads pages whole, and multiplies what is behind the last key by 0."
            found.append(Reason("stale_pages", "may hold NaN", want, hint))
        elif request.band[0] is not None and not request.unseen_finite:
            hint = "The kernel multiplies keys before a window, in the tile where it begins, by 0."
            found.append(Reason("stale_pages", "may hold NaN", "unseen_finite=True beside a window", hint))
        return [
            *found,
            *limits.dtype_reasons(request.dtype),
            *limits.headdim_reasons(request.headdim, request.headdim_v),
            *limits.window_reasons(*request.band, request.window),
            *limits.softcap_reasons(request.softcap),
        ]

    def plan(self, request: PagedRequest) -> Plan:
        left, right = request.band
        left = None if left is None else min(left, vendor.ALL)
        splits, return_lse = 1 if request.deterministic else 0, request.return_lse
        settings = Settings(request.softmax_scale, left, right, request.softcap, splits, request.deterministic)

        def run(q: Tensor, k_cache: Tensor, v_cache: Tensor, batch: PagedBatch) -> Tensor | AttentionOutput:
            out, lse = ops.paged.call(q, k_cache, v_cache, None, batch, settings)
            return AttentionOutput(out, lse) if return_lse else out

        return run

    def kernel_name(self, request: PagedRequest) -> str:
        splits = limits.UNSPLIT if request.deterministic else ""
        return f"FlashAttention-3 over pages{splits} ({usable().package})"
