"""torch's own attention on Apple's GPUs (MPS) and Intel's (XPU): one call of F.scaled_dot_product_attention, for what it
is not known to get wrong. Nothing in here was run."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from xattn import AttentionRequest, Reason
from xattn.plugin import Plan
from xattn.plugin.geometry import Geometry
from xattn.plugin.symbolic import known

DEVICES = ("mps", "xpu")

_HALF = (torch.float16, torch.bfloat16)

# What each device's kernels are known to get wrong beyond the rules below, and a block therefore does not declare:
# mps: headdim_v (pytorch#176767: out has the headdim of q), gqa beside a mask (pytorch#149132: ends the process).
# xpu: masks, which windows are there (intel/torch-xpu-ops#4428: wrong numbers from torch 2.12).


def limits(request: AttentionRequest) -> list[Reason]:
    found = []
    geometry = Geometry.of(request).opened()
    if geometry.band != (None, None):
        if geometry.left is not None:
            found.append(Reason("window", request.window, "None, or one that hides nothing"))
        elif not geometry.square:
            hint = "torch's causal counts from the first key."
            found.append(Reason("causal", request.causal, "seqlen_q == seqlen_k, or one query", hint))
        if request.scale is not None and request.scale <= 0:
            hint = "torch hides the future before it scales: -inf * 0 is NaN."
            found.append(Reason("scale", request.scale, "above 0 beside causal", hint))
        if request.device == "mps" and request.dtype in _HALF:
            hint = "Three of four queries would see the future (pytorch#195910)."
            found.append(Reason("causal", request.causal, "float32", hint))
    if request.device == "mps" and not known(request.seqlen_q > 8) and not known(request.seqlen_k % 32 == 0):
        hint = "For few queries its kernel reads past other lengths (pytorch#169222)."
        found.append(Reason("seqlen_k", request.seqlen_k, "a multiple of 32 where seqlen_q is 8 or less", hint))
    return found


def plan(request: AttentionRequest) -> Plan:
    causal = not Geometry.of(request).full
    scale, gqa = request.scale, not known(request.nheads_k == request.nheads)

    def whole(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=scale, enable_gqa=gqa)
        return out.transpose(1, 2).contiguous()

    return whole
