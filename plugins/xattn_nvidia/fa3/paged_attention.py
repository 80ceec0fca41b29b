"""`paged_attention` by FlashAttention-3: what it serves, and its plan. Nothing is read from the device."""

from __future__ import annotations

import torch
from torch import Tensor

from xattn import AttentionOutput, Capabilities, PagedBatch, PagedKernel, PagedRequest, Reason
from xattn.plugin import Plan
from xattn.plugin.symbolic import holds
from xattn_nvidia.fa3 import limits, vendor
from xattn_nvidia.fa3.installation import ARCHS, has, installation, usable
from xattn_nvidia.shared import pages
from xattn_nvidia.shared.settings import signed

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
                    "headdim_v",
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
        found = limits.traced_reasons()
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
        scale, softcap, return_lse = request.softmax_scale, request.softcap or 0.0, request.return_lse
        splits, block_size = 1 if request.deterministic else 0, request.block_size

        def run(q: Tensor, k_cache: Tensor, v_cache: Tensor, batch: PagedBatch) -> Tensor | AttentionOutput:
            if 0 in (len(q), len(k_cache), batch.batch, batch.block_table.shape[1], batch.max_seqlen_q):
                out = q.new_zeros(*q.shape[:2], v_cache.shape[3])
                lse = torch.full((q.shape[1], len(q)), -torch.inf, device=q.device)
                return AttentionOutput(out, lse) if return_lse else out
            table, lengths = pages.of(batch, block_size, left)
            q, positive = signed(q, scale)
            starts = batch.cu_seqlens_q
            out, lse = vendor.forward(
                q.unsqueeze(1) if starts is None else q, k_cache, v_cache, scale=positive, left=left, right=right,
                softcap=softcap, splits=splits if len(q) <= vendor.SPLIT_TOKENS else 1, seqused_k=lengths,
                page_table=table,
                cu_seqlens=None if starts is None else (starts.contiguous(), None),
                max_seqlen=(batch.max_seqlen_q, None),
            )  # fmt: skip
            if starts is None:
                out, lse = out.squeeze(1), lse.squeeze(2).t()
            else:
                # The kernel does not write the rows behind the last sequence.
                behind = torch.arange(len(q), dtype=torch.int32, device=q.device) >= starts[-1]
                out = out.masked_fill_(behind[:, None, None], 0)
                lse = lse.masked_fill_(behind, -torch.inf)
            return AttentionOutput(out, lse) if return_lse else out

        return run

    def kernel_name(self, request: PagedRequest) -> str:
        splits = limits.UNSPLIT if request.deterministic else ""
        return f"FlashAttention-3 over pages{splits} ({usable().package})"
