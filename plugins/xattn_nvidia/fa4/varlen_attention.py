"""`varlen_attention` by FlashAttention-4: what it serves, and its plan. Nothing is read from the device."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from xattn import AttentionOutput, Capabilities, Reason, VarlenKernel, VarlenRequest
from xattn.plugin import Plan, Request
from xattn_nvidia.fa4 import limits, ops
from xattn_nvidia.fa4.installation import ARCHS, installation
from xattn_nvidia.shared.packed import Ends
from xattn_nvidia.shared.settings import Settings

_PLAIN: Capabilities[Any] = Capabilities(
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
    grads=frozenset({"qkv", "sinks", "lse"}),
    sizes={"headdim": (8, 256, 8), "headdim_v": (8, 256, 8)},
    archs=ARCHS,
    priority={"default": 45, "decode": 40},
    checked=limits.CHECKED,
)
_AHEAD: Capabilities[Any] = replace(_PLAIN, priority={"default": 58, "decode": 40})


class Fa4Varlen(VarlenKernel):
    capabilities = (_PLAIN,)

    def block(self, request: Request) -> Capabilities[Any] | None:
        found = super().block(request)
        if found is not _PLAIN or not isinstance(request, VarlenRequest):
            return found
        ahead = request.softcap is not None or request.window is not None or request.sinks is not None
        return _AHEAD if ahead else found

    def limits(self, request: VarlenRequest) -> list[Reason]:
        installed = installation()
        if isinstance(installed, Reason):
            return [installed]
        return [
            *limits.side_reasons(*request.band),
            *limits.batch_reasons(request.batch),
            *limits.headdim_reasons(request.headdim, request.headdim_v, group=request.group, grads=request.any_grad),
        ]

    def plan(self, request: VarlenRequest) -> Plan:
        return_lse, train, kind = request.return_lse, request.any_grad, ops.kind(request)
        settings = Settings(
            request.softmax_scale, *request.band, request.softcap, splits=1, deterministic=request.deterministic
        )

        def run(
            q: Tensor,
            k: Tensor,
            v: Tensor,
            cu_seqlens_q: Tensor,
            cu_seqlens_k: Tensor,
            *,
            max_seqlen_q: int,
            max_seqlen_k: int,
            sinks: Tensor | None = None,
        ) -> Tensor | AttentionOutput:
            ends = Ends(cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
            out, lse = ops.packed.call(q, k, v, sinks, ends, settings, train=train)
            ops.built.add(kind)
            return AttentionOutput(out, lse) if return_lse else out

        return run

    def unbuilt(self, request: VarlenRequest) -> str | None:
        return ops.unbuilt(request)

    def kernel_name(self, request: VarlenRequest) -> str:
        return "FlashAttention-4 over packed sequences"
