"""Acme's attention as a plugin for xattn: forward only, on the CPU."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

import xattn


class AcmeAttention(xattn.AttentionKernel):
    capabilities = (
        xattn.Capabilities(
            device="cpu",
            dtypes=frozenset({torch.float32, torch.bfloat16}),
            features=frozenset({"causal", "bottom_right", "gqa"}),
            sizes={"headdim": (8, 256, 8)},
            priority={"default": 1},
            checked="compared with the reference backend on a CPU",
        ),
    )

    def limits(self, request: xattn.AttentionRequest) -> list[xattn.Reason]:
        if request.causal and request.seqlen_q > request.seqlen_k:
            # The first queries see no key then, and the softmax below would give them NaN.
            return [xattn.Reason("seqlen_q", request.seqlen_q, "at most seqlen_k, with causal")]
        return []

    def plan(self, request: xattn.AttentionRequest) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        scale, causal, heads = request.softmax_scale, request.causal, (request.nheads_k, request.group)

        def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            seqlen_q, seqlen_k = q.shape[1], k.shape[1]
            grouped = q.float().reshape(*q.shape[:2], *heads, -1)  # (batch, seqlen_q, nheads_k, group, headdim)
            scores = torch.einsum("bihgd,bjhd->bhgij", grouped, k.float()) * scale
            if causal:
                hidden = torch.ones(seqlen_q, seqlen_k, dtype=torch.bool).triu(seqlen_k - seqlen_q + 1)
                scores = scores.masked_fill(hidden, -torch.inf)
            out = torch.einsum("bhgij,bjhd->bihgd", scores.softmax(-1), v.float())
            return out.flatten(2, 3).to(q.dtype).contiguous()

        return run

    def kernel_name(self, request: xattn.AttentionRequest) -> str:
        return "acme einsum" + (" causal" if request.causal else "")


class AcmeBackend(xattn.Backend):
    name = "acme"
    api_version = 1
    kernels = (AcmeAttention(),)

    def info(self) -> dict[str, str]:
        return {"acme": "1.0"}


@xattn.hookimpl
def xattn_backends() -> list[xattn.Backend]:
    return [AcmeBackend()]
