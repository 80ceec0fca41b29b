"""When cuDNN's attention is worth its plan. Measured on an NVIDIA H200 with torch 2.11 and cuDNN 9.19: 1.4 to 2.2 times
as fast as flash, but 60 ms to plan every new shape, 120 ms with gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from xattn.plugin.devices import device_and_arch

ARCHS = frozenset({"sm_90"})
# The first calls of a shape go to flash: a decode loop over a growing cache never pays for a plan, a shape that stays
# does.
_FLASH_CALLS = 8
_SHAPES_MAX = 4096
# Smaller problems take as long as their launch, and cuDNN lacks some of them.
_SEQLEN_MIN = 128

_calls: dict[object, int] = {}


def fits(headdim: int, headdim_v: int, seqlen_k: int) -> bool:
    """Whether cuDNN takes these sizes and is the faster one for them."""
    return seqlen_k >= _SEQLEN_MIN and all(size % 8 == 0 and size <= 256 for size in (headdim, headdim_v))


def recurs(name: str, q: Tensor, k: Tensor, v: Tensor, causal: bool) -> bool:
    """Whether this shape and layout has been asked for often enough under this name."""
    if device_and_arch(q.device)[1] not in ARCHS:
        return False
    key = (name, q.shape, k.shape, v.shape, q.stride(), k.stride(), v.stride(), q.dtype, q.device, causal)
    if len(_calls) >= _SHAPES_MAX:
        _calls.clear()
    calls = _calls[key] = _calls.get(key, 0) + 1
    return calls > _FLASH_CALLS


def forward(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    """BSNH in, out BSNH and lse (batch, nheads, seqlen_q). Causal is for seqlen_q == seqlen_k alone: cuDNN counts from
    the top left."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    out, lse, *_ = torch._scaled_dot_product_cudnn_attention(q, k, v, None, True, 0.0, causal, False, scale=scale)
    return out.transpose(1, 2), lse.squeeze(-1)


def backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, causal: bool, scale: float
) -> list[Tensor]:
    """dq, dk, dv in BSNH, for any out and lse of which exp(score - lse) is the weight."""
    seqlen_q, seqlen_k = q.shape[1], k.shape[1]
    q, k, v, out, dout = (x.transpose(1, 2) for x in (q, k, v, out, dout))
    grads = torch.ops.aten._scaled_dot_product_cudnn_attention_backward(
        dout, q, k, v, out, lse.unsqueeze(-1), None, None, None, None, None, seqlen_q, seqlen_k, 0.0, causal,
        scale=scale,
    )  # fmt: skip
    return [grad.transpose(1, 2) for grad in grads]
