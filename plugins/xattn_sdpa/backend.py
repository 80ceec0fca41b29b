"""The `sdpa` backend: what it declares, and which way a call takes."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from xattn import AttentionOutput, Backend, Capabilities, Reason, Request
from xattn.backend import Plan
from xattn.capabilities import FEATURES, GRADS
from xattn_sdpa import direct, ops
from xattn_sdpa.engine import Settings

_FLOATS = frozenset({torch.float64, torch.float32, torch.float16, torch.bfloat16})


class SdpaBackend(Backend):
    name = "sdpa"
    api_version = 1
    capabilities = (
        Capabilities(
            device="cpu",
            dtypes=_FLOATS,
            features=frozenset(FEATURES) - {"dropout_p"},
            grads=frozenset(GRADS),
            priority={"default": 50},
            checked="run on CPU, torch 2.13",
        ),
    )

    def limits(self, request: Request) -> list[Reason]:
        return []

    def plan(self, request: Request) -> Plan:
        how = _direct(request)
        return functools.partial(_engine, request) if how is None else direct.plan(request, how)

    def kernel(self, request: Request) -> str:
        how = _direct(request)
        if how is not None:
            name = "F.scaled_dot_product_attention (fused CPU kernel)"
            return f"{name}, query heads of a group folded into rows" if how.fold else name
        if request.softcap is not None:
            return "blocks of matmuls (the fused kernel has no softcap)"
        return "torch's fused CPU kernel, tile by tile, merged through lse"


def _direct(request: Request) -> direct.Direct | None:
    """One call of F.scaled_dot_product_attention, where it is exact and stays on the fused kernel."""
    beyond = (request.sinks, request.alibi_slopes, request.softcap, request.seqlens_k)
    if any(feature is not None for feature in beyond) or request.return_lse or request.empty:
        return None
    if request.headdim_v != request.headdim:
        return None
    if request.bias is not None and (request.bias.requires_grad or request.bias.dtype == torch.float64 != request.dtype):
        return None
    how = direct.direct(request)
    if how is not None and how.causal and request.scale is not None and request.scale <= 0:
        return None  # -inf * 0 in the fused kernel; see engine
    return how


def _engine(
    request: Request,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    sinks: Tensor | None = None,
    alibi_slopes: Tensor | None = None,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
    seqlens_k: Tensor | None = None,
) -> Tensor | AttentionOutput:
    left, right = request.band
    top_left = request.align == "top_left"
    settings = Settings(left, right, top_left, request.softmax_scale, request.softcap)
    tensors = (q, k, v, sinks, alibi_slopes, _four(bias), _four(mask), seqlens_k)
    out, lse = ops.attend(tensors, settings, request.any_grad)
    return AttentionOutput(out, lse.float()) if request.return_lse else out


def _four(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor[(None,) * (4 - tensor.dim())]
