"""A forward call as one torch operator, for torch.compile and torch.export: none of aiter's Python is traced. Eager
calls go past this module.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import xattn
from xattn import AttentionOutput, AttentionRequest
from xattn.plugin import Plan

_library = torch.library.Library("xattn_rocm", "DEF")
_library.define(
    "attend(Tensor q, Tensor k, Tensor v, Tensor? sinks, Tensor? alibi_slopes, Tensor? bias, Tensor? seqlens_k, "
    "bool causal, SymInt? left, SymInt? right, float? scale, float? softcap, bool return_lse) "
    "-> (Tensor, Tensor)"
)
_attend = torch.ops.xattn_rocm.attend.default


def opaque(request: AttentionRequest) -> Plan:
    """The plan of a forward call while torch.compile traces."""
    left, right = request.window if request.window is not None else (None, None)

    def run(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        sinks: Tensor | None = None,
        alibi_slopes: Tensor | None = None,
        bias: Tensor | None = None,
        seqlens_k: Tensor | None = None,
    ) -> Tensor | AttentionOutput:
        tensors = (q, k, v, sinks, alibi_slopes, bias, seqlens_k)
        options = (request.causal, left, right, request.scale, request.softcap, request.return_lse)
        out, lse = _attend(*tensors, *options)
        return AttentionOutput(out, lse) if request.return_lse else out

    return run


def _impl(
    q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, alibi_slopes: Tensor | None, bias: Tensor | None,
    seqlens_k: Tensor | None, causal: bool, left: int | None, right: int | None, scale: float | None,
    softcap: float | None, return_lse: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    # Gradients are not for an operator to want: it lies below autograd.
    with torch.no_grad():
        returned: Tensor | AttentionOutput = xattn.attention(
            q, k, v, sinks=sinks, alibi_slopes=alibi_slopes, bias=bias, seqlens_k=seqlens_k, causal=causal,
            window=None if left is None and right is None else (left, right), scale=scale, softcap=softcap,
            return_lse=return_lse, backend="aiter-triton",
        )  # fmt: skip
    # An operator returns tensors, never None.
    return returned if isinstance(returned, AttentionOutput) else (returned, q.new_empty(0, dtype=torch.float32))


def _fake(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    batch, seqlen_q, nheads, _ = q.shape
    return_lse = rest[-1]
    lse = (batch, nheads, seqlen_q) if return_lse else (0,)
    return q.new_empty(batch, seqlen_q, nheads, v.shape[3]), q.new_empty(lse, dtype=torch.float32)


# ROCm's tensors have CUDA's key; an emulation's are on the CPU.
for _key in ("CPU", "CUDA"):
    _library.impl("attend", _impl, _key)
torch.library.register_fake("xattn_rocm::attend", _fake, lib=_library)
