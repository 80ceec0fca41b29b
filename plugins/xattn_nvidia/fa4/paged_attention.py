"""`paged_attention` by FlashAttention-4: what it serves, and its plan. Nothing is read from the device."""

from __future__ import annotations

import torch
from torch import Tensor

from xattn import AttentionOutput, Capabilities, PagedBatch, PagedKernel, PagedRequest, Reason
from xattn.plugin import Plan
from xattn_nvidia.fa4 import limits, ops, vendor
from xattn_nvidia.fa4.installation import ARCHS, installation
from xattn_nvidia.shared import pages, sequences
from xattn_nvidia.shared.settings import Settings, signed


class Fa4Paged(PagedKernel):
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
                    "sinks",
                    "deterministic",
                    "return_lse",
                    "empty",
                }
            ),
            sizes={"headdim": (8, 256, 8), "headdim_v": (8, 256, 8)},
            archs=ARCHS,
            # It does not split the keys of a sequence over the card.
            priority={"default": 50, "decode": 40},
            checked=limits.CHECKED,
        ),
    )

    def limits(self, request: PagedRequest) -> list[Reason]:
        installed = installation()
        if isinstance(installed, Reason):
            return [installed]
        return [
            *limits.side_reasons(*request.band),
            *limits.batch_reasons(request.batch),
            *limits.headdim_reasons(request.headdim, request.headdim_v, group=request.group, grads=False),
        ]

    def plan(self, request: PagedRequest) -> Plan:
        left, right = request.band
        left = None if left is None else min(left, vendor.ALL)
        return_lse, block_size, kind = request.return_lse, request.block_size, ops.kind(request)
        settings = Settings(request.softmax_scale, left, right, request.softcap, 1, request.deterministic)

        def run(
            q: Tensor, k_cache: Tensor, v_cache: Tensor, batch: PagedBatch, *, sinks: Tensor | None = None
        ) -> Tensor | AttentionOutput:
            starts = batch.cu_seqlens_q
            if 0 in (len(q), len(k_cache), batch.batch, batch.block_table.shape[1], batch.max_seqlen_q):
                out = q.new_zeros(*q.shape[:2], v_cache.shape[3])
                lse = torch.full((q.shape[1], len(q)), -torch.inf, device=q.device)
                lse = lse if sinks is None else lse.copy_(sinks[:, None])
            else:
                table, lengths = pages.of(batch, block_size, left)
                given, scale = signed(q, settings.scale)
                out, lse = vendor.forward(
                    given.unsqueeze(1) if starts is None else given, k_cache, v_cache, sinks,
                    settings._replace(scale=scale), starts=None if starts is None else starts.contiguous(),
                    max_seqlen_q=batch.max_seqlen_q, seqused_k=lengths, page_table=table,
                )  # fmt: skip
                ops.built.add(kind)
                if starts is None:
                    out, lse = out.squeeze(1), lse.squeeze(2).t()
            if starts is not None:
                # The kernel does not write the rows behind the last sequence.
                behind = sequences.behind(len(q), starts)
                out = out.masked_fill_(behind[:, None, None], 0)
                lse = lse.masked_fill_(behind, -torch.inf)
            return AttentionOutput(out, lse) if return_lse else out

        return run

    def unbuilt(self, request: PagedRequest) -> str | None:
        return ops.unbuilt(request)

    def kernel_name(self, request: PagedRequest) -> str:
        return "FlashAttention-4 over pages"
