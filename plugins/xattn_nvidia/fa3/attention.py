"""`attention` by FlashAttention-3: what it serves, and its plan."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from xattn import AttentionKernel, AttentionOutput, AttentionRequest, Capabilities, Reason
from xattn.plugin import Plan, Request
from xattn.plugin.geometry import Geometry
from xattn.plugin.offset import as_bottom_right, offset_reasons, plan_at_offset
from xattn_nvidia.fa3 import limits, ops
from xattn_nvidia.fa3.installation import ARCHS, installation, usable
from xattn_nvidia.shared.bands import counted
from xattn_nvidia.shared.settings import Settings

CHECKED = "run on an NVIDIA H100, torch 2.11: fa3-fwd 0.0.3, and a build of commit 0251105a without softcap"

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
            "deterministic",
            "return_lse",
        }
    ),
    grads=frozenset({"qkv"}),
    sizes={"headdim": (8, 256, 8), "headdim_v": (8, 256, 8)},
    archs=ARCHS,
    # Single queries and gradients are served as fast by torch's cuDNN kernel, whose call costs the host 25 us less.
    priority={"default": 60, "decode": 45, "train": 45},
    checked=CHECKED,
)
# But for what torch's faster kernels have not: twice as fast as its flash kernel with windows, 36 times with softcap.
_AHEAD: Capabilities[Any] = replace(_PLAIN, priority={"default": 60})


class Fa3Attention(AttentionKernel):
    capabilities = (_PLAIN,)

    def block(self, request: Request) -> Capabilities[Any] | None:
        found = super().block(request)
        if found is not _PLAIN or not isinstance(request, AttentionRequest):
            return found
        return _AHEAD if request.softcap is not None or request.window is not None else found

    def limits(self, request: AttentionRequest) -> list[Reason]:
        installed = installation()
        if isinstance(installed, Reason):
            return [installed]
        if request.align == "offset":
            return offset_reasons(request) or self._stops(as_bottom_right(request, request.seqlen_k))
        return self._stops(request)

    def _stops(self, request: AttentionRequest) -> list[Reason]:
        left, right = counted(Geometry.of(request)).band
        headdim, headdim_v = request.headdim, request.headdim_v
        return [
            *limits.dtype_reasons(request.dtype),
            *limits.headdim_reasons(headdim, headdim_v),
            *limits.window_reasons(left, right, request.window),
            *limits.softcap_reasons(request.softcap),
            *limits.grad_reasons(request.any_grad, request.deterministic, max(headdim, headdim_v)),
        ]

    def plan(self, request: AttentionRequest) -> Plan:
        if request.align == "offset":
            return plan_at_offset(request, self.plan)
        whole = Geometry.of(request)
        keys = slice(whole.first_k, whole.end_k)
        trims = (whole.first_k, whole.end_k) != (0, request.seqlen_k)
        left, right = counted(whole).band
        # One split, whose sums are in one order, where bits are promised and where a backward pass follows.
        splits = 1 if _unsplit(request) else 0
        settings = Settings(request.softmax_scale, left, right, request.softcap, splits, request.deterministic)
        return_lse, train = request.return_lse, request.any_grad

        def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor | AttentionOutput:
            if trims:
                # Keys that no query sees: what they hold would be multiplied by 0.
                k, v = k[:, keys], v[:, keys]
            out, lse = ops.dense.call(q, k, v, None, settings, train=train)
            return AttentionOutput(out, lse) if return_lse else out

        return run

    def kernel_name(self, request: AttentionRequest) -> str:
        return f"FlashAttention-3{limits.UNSPLIT if _unsplit(request) else ''} ({usable().package})"


def _unsplit(request: AttentionRequest) -> bool:
    return request.deterministic or request.any_grad
