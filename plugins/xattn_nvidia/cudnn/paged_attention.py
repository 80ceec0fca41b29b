"""`paged_attention` by cuDNN: one query a sequence. What it serves, and its plan. Nothing is read from the device."""

from __future__ import annotations

import torch
from torch import Tensor

from xattn import AttentionOutput, Capabilities, PagedBatch, PagedKernel, PagedRequest, Reason
from xattn.plugin import Plan
from xattn_nvidia.cudnn import ops
from xattn_nvidia.cudnn.attention import CHECKED
from xattn_nvidia.cudnn.installation import ARCHS, installation
from xattn_nvidia.shared.settings import Settings


class CudnnPaged(PagedKernel):
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
                    "sinks",
                    "return_lse",
                    "empty",
                }
            ),
            sizes={"headdim": (8, 256, 8), "headdim_v": (8, 256, 8)},
            archs=ARCHS,
            priority={"default": 57},
            checked=CHECKED,
        ),
    )

    def limits(self, request: PagedRequest) -> list[Reason]:
        installed = installation()
        if isinstance(installed, Reason):
            return [installed]
        found = []
        if not request.one_query:
            found.append(Reason("cu_seqlens_q", "queries of several lengths", "one query a sequence"))
        if request.block_size & (request.block_size - 1):
            found.append(Reason("block_size", request.block_size, "a power of two"))
        return found

    def plan(self, request: PagedRequest) -> Plan:
        settings = Settings(request.softmax_scale, *request.band, None, splits=1, deterministic=False)
        return_lse = request.return_lse

        def run(
            q: Tensor, k_cache: Tensor, v_cache: Tensor, batch: PagedBatch, *, sinks: Tensor | None = None
        ) -> Tensor | AttentionOutput:
            out, lse = ops.paged.call(q, k_cache, v_cache, sinks, batch, settings)
            return AttentionOutput(out, lse) if return_lse else out

        return run

    def kernel_name(self, request: PagedRequest) -> str:
        return "cuDNN's attention over pages, by its frontend"
