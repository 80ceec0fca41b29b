"""When cuDNN's attention is taken, and how it is called. Measured on an NVIDIA H200 with torch 2.11 and cuDNN 9.19: 1.4
to 2.2 times as fast as flash, but 45 to 60 ms to plan each new shape, 120 ms with gradients.

So the kind of a call decides, never how often it came before: of equal calls each has the same bits.
"""

from __future__ import annotations

import torch
from torch import Tensor

from xattn import AttentionRequest
from xattn.plugin.symbolic import static
from xattn_sdpa.attention.aligned import laid_out

ARCHS = frozenset({"sm_90"})
# Smaller problems take as long as their launch, and cuDNN lacks some of them.
_SEQLEN_MIN = 128
# The sizes' logarithms, summed, from which on cuDNN's gain pays for its plan. Without gradients within 100 calls, three
# prompts of one length in a model of 32 layers: 0.8 ms a call at (4, 4096, 32, 128) causal, which is 39. With gradients
# within 1,000, for training repeats its shapes: 0.8 ms at 37. Beside a mask blocks of matmuls are the other choice,
# which take 3 ms at 29.
_PAYS, _PAYS_TRAINING, _PAYS_MASKED = 39, 35, 27


def fits(headdim: int, headdim_v: int, seqlen_k: int) -> bool:
    """Whether cuDNN takes these sizes."""
    return seqlen_k >= _SEQLEN_MIN and all(size % 8 == 0 and size <= 256 for size in (headdim, headdim_v))


def serves(request: AttentionRequest, full: bool) -> bool:
    """Whether cuDNN takes the request, is right for it, and its gain pays for its plan. full: no band."""
    sizes = request.batch, request.nheads, request.seqlen_q, request.seqlen_k, request.headdim, request.headdim_v
    # A symbolic size is a length that changes.
    if request.arch not in ARCHS or request.dropout_p is not None or not all(map(static, sizes)):
        return False
    if not fits(request.headdim, request.headdim_v, request.seqlen_k):
        return False
    masked = request.mask is not None or request.bias is not None
    if request.any_grad and not backward_is_right(request.seqlen_q, request.seqlen_k):
        return False
    return pays(sizes, full=full, grads=request.any_grad, masked=masked)


def pays(sizes: tuple[int, ...], *, full: bool, grads: bool, masked: bool = False) -> bool:
    """Whether the gain over the other kernels pays for the plans. sizes: batch, nheads, seqlen_q, seqlen_k, headdim,
    headdim_v."""
    batch, nheads, seqlen_q, seqlen_k, headdim, headdim_v = sizes
    # More keys than queries are a cache, which has another length at the next call, and every length is a new plan.
    if seqlen_q != seqlen_k and not grads and not masked:
        return False
    work = sum((size - 1).bit_length() for size in (batch, nheads, seqlen_q, seqlen_k, headdim + headdim_v)) + full
    return work >= (_PAYS_MASKED if masked else _PAYS_TRAINING if grads else _PAYS)


def backward_is_right(seqlen_q: int, seqlen_k: int) -> bool:
    """Whether the gradients are those of the call."""
    # One query with a low lse: dk and dv are NaN (NVIDIA/cudnn-frontend#1072). Few queries gain nothing either.
    if seqlen_q < _SEQLEN_MIN:
        return False
    # The second half of the last tile of 128 keys counts as scores of 0: with a low lse dq is NaN beside a mask
    # (pytorch#196678), and gradients were wrong without one too (704 queries and keys, on an NVIDIA H100).
    return bool(seqlen_q % 128 != 64 and seqlen_k % 128 != 64)


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
    dout = laid_out(dout, out.stride())
    q, k, v, out, dout = (x.transpose(1, 2) for x in (q, k, v, out, dout))
    grads = torch.ops.aten._scaled_dot_product_cudnn_attention_backward(
        dout, q, k, v, out, lse.unsqueeze(-1), None, None, None, None, None, seqlen_q, seqlen_k, 0.0, causal,
        scale=scale,
    )  # fmt: skip
    return [grad.transpose(1, 2) for grad in grads]
