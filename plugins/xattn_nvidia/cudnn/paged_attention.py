"""`paged_attention` by cuDNN: one query a sequence. What it serves, and its plan. Nothing is read from the device."""

from __future__ import annotations

import torch
from torch import Tensor

from xattn import AttentionOutput, Capabilities, PagedBatch, PagedKernel, PagedRequest, Reason
from xattn.plugin import Plan
from xattn_nvidia.cudnn import graphs
from xattn_nvidia.cudnn.attention import CHECKED
from xattn_nvidia.cudnn.bands import Band
from xattn_nvidia.cudnn.installation import ARCHS, installation
from xattn_nvidia.shared import pages
from xattn_nvidia.shared.settings import aligned, signed


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
                    "headdim_v",
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
        if torch.compiler.is_compiling():
            hint = "cuDNN's graphs are not traced; call it outside the graph."
            found.append(Reason("torch.compile", True, "an eager call", hint))
        return found

    def plan(self, request: PagedRequest) -> Plan:
        left, _ = request.band
        scale, return_lse, block_size = request.softmax_scale, request.return_lse, request.block_size
        # One query, which is the last: it sees no key behind itself.
        band = Band(True, left, 0)
        kept: graphs.Graphs = {}

        def run(
            q: Tensor, k_cache: Tensor, v_cache: Tensor, batch: PagedBatch, *, sinks: Tensor | None = None
        ) -> Tensor | AttentionOutput:
            if 0 in (len(q), len(k_cache), batch.block_table.shape[1]):
                out = q.new_zeros(*q.shape[:2], v_cache.shape[3])
                lse = torch.full((q.shape[1], len(q)), -torch.inf, device=q.device)
            else:
                table, lengths, empty = pages.looked_up(batch, block_size, left)
                given, positive = signed(q, scale)
                caches = aligned(k_cache), aligned(v_cache)
                out, lse = graphs.paged(kept, aligned(given), *caches, table, lengths, positive, band)
                # Of no keys cuDNN makes NaN, and of a length of 1 in its place the value of some page.
                out = out.masked_fill_(empty[:, None, None], 0)
                lse = lse.masked_fill_(empty, -torch.inf)
            if sinks is not None:
                rows = sinks.float()[:, None]
                out = out * torch.sigmoid(lse - rows).t().unsqueeze(2).to(out.dtype)
                lse = torch.logaddexp(lse, rows)
            return AttentionOutput(out, lse) if return_lse else out

        return run

    def kernel_name(self, request: PagedRequest) -> str:
        return "cuDNN's attention over pages, by its frontend"
