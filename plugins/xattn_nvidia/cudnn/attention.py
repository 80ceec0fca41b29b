"""`attention` by cuDNN's frontend: what it serves, and its plan."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from xattn import AttentionKernel, AttentionOutput, AttentionRequest, Capabilities, Reason
from xattn.plugin import Plan, Request
from xattn.plugin.geometry import Geometry
from xattn.plugin.offset import as_bottom_right, offset_reasons, plan_at_offset
from xattn.plugin.symbolic import holds
from xattn_nvidia.cudnn import ops
from xattn_nvidia.cudnn.bands import alive, band
from xattn_nvidia.cudnn.installation import ARCHS, installation
from xattn_nvidia.shared.settings import Settings

CHECKED = "run on an NVIDIA H100, torch 2.11: nvidia-cudnn-frontend 1.32.0, cuDNN 9.19"

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
            "sinks",
            "return_lse",
        }
    ),
    grads=frozenset({"qkv"}),
    sizes={"headdim": (8, 256, 8), "headdim_v": (8, 256, 8)},
    archs=ARCHS,
    # torch calls the same kernel for what it has of this, and costs the host 45 us less.
    priority={"default": 44},
    checked=CHECKED,
)
# But for windows in training, where torch's flash kernel takes twice as long. Elsewhere each new length would wait for
# cuDNN's plan, for 0.05 to 1 s: there a table that was measured takes it.
_AHEAD: Capabilities[Any] = replace(_PLAIN, priority={"default": 44, "train": 57})


class CudnnAttention(AttentionKernel):
    capabilities = (_PLAIN,)

    def block(self, request: Request) -> Capabilities[Any] | None:
        found = super().block(request)
        if found is not _PLAIN or not isinstance(request, AttentionRequest):
            return found
        return _AHEAD if request.window is not None else found

    def limits(self, request: AttentionRequest) -> list[Reason]:
        installed = installation()
        if isinstance(installed, Reason):
            return [installed]
        found = []
        if request.sinks is not None and request.any_grad:
            found.append(Reason("grad_qkv", "required", "forward only beside sinks", "cuDNN's backward has none."))
        if request.align == "offset":
            return found + (offset_reasons(request) or self._stops(as_bottom_right(request, request.seqlen_k)))
        return found + self._stops(request)

    def _stops(self, request: AttentionRequest) -> list[Reason]:
        whole = Geometry.of(request)
        if band(alive(whole.part(0, whole.seqlen_q, whole.first_k, whole.end_k))) is None:
            hint = "cuDNN has windows, and the bottom right, for no more queries than keys that are seen."
            return [Reason("align", "a side that ends before its diagonal", "bottom_right", hint)]
        return _gradients(whole.trimmed()) if request.any_grad else []

    def plan(self, request: AttentionRequest) -> Plan:
        if request.align == "offset":
            return plan_at_offset(request, self.plan)
        whole = Geometry.of(request)
        keys = slice(whole.first_k, whole.end_k)
        trims = (whole.first_k, whole.end_k) != (0, request.seqlen_k)
        part = whole.part(0, whole.seqlen_q, whole.first_k, whole.end_k)
        sides = part.recounted(part.seqlen_k - part.seqlen_q).band
        settings = Settings(request.softmax_scale, *sides, None, splits=1, deterministic=False)
        return_lse, train = request.return_lse, request.any_grad

        def run(q: Tensor, k: Tensor, v: Tensor, *, sinks: Tensor | None = None) -> Tensor | AttentionOutput:
            if trims:
                # Keys that no query sees: what they hold would be multiplied by 0.
                k, v = k[:, keys], v[:, keys]
            out, lse = ops.dense.call(q, k, v, sinks, settings, train=train)
            return AttentionOutput(out, lse) if return_lse else out

        return run

    def kernel_name(self, request: AttentionRequest) -> str:
        return "cuDNN's attention, by its frontend"


def _gradients(kept: Geometry) -> list[Reason]:
    """What keeps cuDNN's backward from the queries that see a key and the keys that are seen."""
    sizes = kept.seqlen_q, kept.seqlen_k
    if holds(kept.seqlen_q >= 128) and all(holds(size % 128 != 64) for size in sizes):
        return []
    want = "at least 128 queries, and neither these nor the keys 64 past a multiple of 128"
    return [Reason("seqlen_q", f"{sizes[0]} queries of {sizes[1]} keys", want, "There cuDNN's gradients may be wrong.")]
