"""`paged_attention` by FlashAttention-4: what it serves, and its plan. Nothing is read from the device."""

from __future__ import annotations

import torch
from torch import Tensor

from xattn import AttentionOutput, Capabilities, PagedBatch, PagedKernel, PagedRequest, Reason
from xattn.plugin import Plan
from xattn_nvidia.fa4 import limits, ops, vendor
from xattn_nvidia.fa4.installation import ARCHS, installation
from xattn_nvidia.shared.settings import Settings


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
        settings = Settings(request.softmax_scale, left, right, request.softcap, 1, request.deterministic)
        return_lse, kind = request.return_lse, ops.kind(request)

        def run(
            q: Tensor, k_cache: Tensor, v_cache: Tensor, batch: PagedBatch, *, sinks: Tensor | None = None
        ) -> Tensor | AttentionOutput:
            out, lse = ops.paged.call(q, k_cache, v_cache, sinks, batch, settings)
            ops.built.add(kind)
            return AttentionOutput(out, lse) if return_lse else out

        return run

    def unbuilt(self, request: PagedRequest) -> str | None:
        return ops.unbuilt(request)

    def kernel_name(self, request: PagedRequest) -> str:
        return "FlashAttention-4 over pages"
