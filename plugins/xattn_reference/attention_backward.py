"""`attention_backward` as the contract words it."""

from __future__ import annotations

import functools

from torch import Tensor

from xattn import AttentionBackwardKernel, AttentionBackwardRequest
from xattn.plugin import Plan
from xattn_reference import in_order
from xattn_reference.attention import scores
from xattn_reference.block import everything
from xattn_reference.softmax import share


class ReferenceBackward(AttentionBackwardKernel):
    capabilities = (everything(AttentionBackwardRequest, fallback=True),)

    def plan(self, request: AttentionBackwardRequest) -> Plan:
        return functools.partial(attention_backward, request)

    def kernel_name(self, request: AttentionBackwardRequest) -> str:
        how = "sums in one order" if request.batch_invariant else "matmul"
        return f"PyTorch {how} and exp over the whole score matrix"


def attention_backward(
    request: AttentionBackwardRequest,
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    *,
    alibi_slopes: Tensor | None = None,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
    seqlens_k: Tensor | None = None,
    align: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Shapes as in `xattn.attention_backward`. Computes in float32, or in float64 for float64 tensors."""
    how = scores(request, q, None, alibi_slopes, bias, mask, seqlens_k, align)
    return (in_order.share if how.in_order else share)(dout, q, k, v, out, lse, how)
