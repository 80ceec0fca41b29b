"""`attention` by FlashAttention-4: what it serves, and its plan."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from xattn import AttentionKernel, AttentionOutput, AttentionRequest, Capabilities, Reason
from xattn.plugin import Plan, Request
from xattn.plugin.geometry import Geometry
from xattn.plugin.offset import as_bottom_right, offset_reasons, plan_at_offset
from xattn_nvidia.fa4 import limits, ops
from xattn_nvidia.fa4.installation import ARCHS, installation
from xattn_nvidia.shared.bands import counted
from xattn_nvidia.shared.settings import Settings

_PLAIN: Capabilities[Any] = Capabilities(
    device="cuda",
    dtypes=frozenset({torch.float16, torch.bfloat16}),
    features=frozenset(
        {
            "causal",
            "window",
            "top_left",
            "bottom_right",
            "offset",
            "gqa",
            "headdim_v",
            "softcap",
            "sinks",
            "deterministic",
            "return_lse",
        }
    ),
    grads=frozenset({"qkv", "sinks", "lse"}),
    sizes={"headdim": (8, 256, 8), "headdim_v": (8, 256, 8)},
    archs=ARCHS,
    # A call costs the host 150 us more than torch's: small ones, and single queries, would wait for it.
    priority={"default": 45, "decode": 40},
    checked=limits.CHECKED,
)
# But for what torch's faster kernels have not: twice as fast as its flash kernel, and far ahead of it with softcap.
_AHEAD: Capabilities[Any] = replace(_PLAIN, priority={"default": 58, "decode": 40})
_SOFTCAP: Capabilities[Any] = replace(_PLAIN, priority={"default": 58})


class Fa4Attention(AttentionKernel):
    capabilities = (_PLAIN,)

    def block(self, request: Request) -> Capabilities[Any] | None:
        found = super().block(request)
        if found is not _PLAIN or not isinstance(request, AttentionRequest):
            return found
        if request.softcap is not None:
            return _SOFTCAP
        return _AHEAD if request.window is not None or request.sinks is not None else found

    def limits(self, request: AttentionRequest) -> list[Reason]:
        installed = installation()
        if isinstance(installed, Reason):
            return [installed]
        if request.align == "offset":
            return offset_reasons(request) or self._stops(as_bottom_right(request, request.seqlen_k))
        return self._stops(request)

    def _stops(self, request: AttentionRequest) -> list[Reason]:
        return [
            *limits.side_reasons(*counted(Geometry.of(request)).band),
            *limits.batch_reasons(request.batch),
            *limits.headdim_reasons(request.headdim, request.headdim_v, group=request.group, grads=request.any_grad),
        ]

    def plan(self, request: AttentionRequest) -> Plan:
        if request.align == "offset":
            return plan_at_offset(request, self.plan)
        whole = Geometry.of(request)
        keys = slice(whole.first_k, whole.end_k)
        trims = (whole.first_k, whole.end_k) != (0, request.seqlen_k)
        settings = Settings(
            request.softmax_scale, *counted(whole).band, request.softcap, splits=1, deterministic=request.deterministic
        )
        return_lse, train, kind = request.return_lse, request.any_grad, ops.kind(request)

        def run(q: Tensor, k: Tensor, v: Tensor, *, sinks: Tensor | None = None) -> Tensor | AttentionOutput:
            if trims:
                # Keys that no query sees: what they hold would be multiplied by 0.
                k, v = k[:, keys], v[:, keys]
            out, lse = ops.dense.call(q, k, v, sinks, settings, train=train)
            ops.built.add(kind)
            return AttentionOutput(out, lse) if return_lse else out

        return run

    def unbuilt(self, request: AttentionRequest) -> str | None:
        return ops.unbuilt(request)

    def kernel_name(self, request: AttentionRequest) -> str:
        return "FlashAttention-4"
