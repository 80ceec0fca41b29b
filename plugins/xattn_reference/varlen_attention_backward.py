"""`varlen_attention_backward` as one call over all tokens, in which each sequence sees its own keys alone."""

from __future__ import annotations

import functools

from torch import Tensor

from xattn import VarlenBackwardKernel, VarlenBackwardRequest
from xattn.plugin import Plan
from xattn_reference import in_order
from xattn_reference.block import everything
from xattn_reference.softmax import share
from xattn_reference.varlen_attention import scores


class ReferenceVarlenBackward(VarlenBackwardKernel):
    capabilities = (everything(VarlenBackwardRequest, fallback=True, checked="run on CPU"),)

    def plan(self, request: VarlenBackwardRequest) -> Plan:
        return functools.partial(varlen_attention_backward, request)

    def kernel_name(self, request: VarlenBackwardRequest) -> str:
        how = "sums in one order" if request.batch_invariant else "matmul"
        return f"PyTorch {how} and exp over all tokens"


def varlen_attention_backward(
    request: VarlenBackwardRequest,
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    *,
    max_seqlen_q: int,
    max_seqlen_k: int,
    alibi_slopes: Tensor | None = None,
    align: int | Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Shapes as in `xattn.varlen_attention_backward`; the bounds are not needed."""
    how, _ = scores(request, q, k, cu_seqlens_q, cu_seqlens_k, None, alibi_slopes, align)
    run = in_order.share if how.in_order else share
    dq, dk, dv = run(dout[None], q[None], k[None], v[None], out[None], lse[None], how)
    return dq.squeeze(0), dk.squeeze(0), dv.squeeze(0)
