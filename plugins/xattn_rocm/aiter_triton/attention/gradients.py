"""`mha.flash_attn_func` with its gradients, as torch operators.

aiter's backward is called here, and not by way of aiter's own autograd function: that one follows a switch of the
whole process to a kernel that is wrong for causal calls, returns gradients of the padded width where headdim is no
multiple of 8, and hands on the gradient of out in any layout, while releases before 0.1.14 read it in out's.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from xattn.plugin import derivatives
from xattn_rocm import vendor

_FORWARD = {"flat": "aiter.ops.triton.mha", "attention": "aiter.ops.triton.attention.mha"}
BACKWARD = {layout: f"{module}_onekernel_bwd" for layout, module in _FORWARD.items()}

_library = torch.library.Library("xattn_rocm_triton", "DEF")
_TENSORS = "Tensor q, Tensor k, Tensor v, Tensor? sinks, Tensor? alibi_slopes"
_OPTIONS = "float scale, bool causal, SymInt? left, str layout"
_library.define(f"forward({_TENSORS}, {_OPTIONS}) -> (Tensor, Tensor)")
_library.define(
    f"backward(Tensor dout, Tensor out, Tensor lse, {_TENSORS}, {_OPTIONS}) -> (Tensor, Tensor, Tensor, Tensor)"
)
_forward = torch.ops.xattn_rocm_triton.forward.default
_backward = torch.ops.xattn_rocm_triton.backward.default


def check_switch(module: ModuleType) -> None:
    """aiter's mha_set_impl changes the kernel of the whole process, to one that drops sinks."""
    if module.__dict__.get("_MHA_IMPL", "default") != "default":
        raise RuntimeError(f"aiter's mha_set_impl({module._MHA_IMPL!r}) is on; xattn knows its default kernels alone")


def _forward_impl(
    q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, alibi_slopes: Tensor | None,
    scale: float, causal: bool, left: int | None, layout: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    # Releases that have no windows and no sinks have no parameters for them.
    given: dict[str, Any] = {} if left is None else {"window_size": (left, -1)}
    if sinks is not None:
        given["sink"] = sinks
    module = vendor.module(_FORWARD[layout])
    check_switch(module)
    out, lse = module.flash_attn_func(
        q, k, v, softmax_scale=scale, causal=causal, alibi_slopes=alibi_slopes, return_lse=True, **given
    )  # fmt: skip
    return out.contiguous(), lse


def _backward_impl(
    dout: Tensor, out: Tensor, lse: Tensor, q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None,
    alibi_slopes: Tensor | None, scale: float, causal: bool, left: int | None, layout: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    dq, dk, dv = (torch.zeros(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
    given: dict[str, Any] = {} if left is None else {"sliding_window": left}
    dsinks = q.new_zeros(0 if sinks is None else sinks.shape, dtype=torch.float32)
    if sinks is not None:
        given |= {"sink": sinks, "dsink": dsinks}
    vendor.module(BACKWARD[layout]).flash_attn_onekernel_backward(
        dout.contiguous(), q, k, v, out, lse, dq, dk, dv, None, scale, alibi_slopes, causal, None, None,
        max_seqlen_q=q.shape[1], max_seqlen_k=k.shape[1], dropout_p=0.0, USE_INT64_STRIDES=True, **given,
    )  # fmt: skip
    return dq, dk, dv, dsinks


def _forward_fake(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    batch, seqlen_q, nheads, _ = q.shape
    lse = q.new_empty(batch, nheads, seqlen_q, dtype=torch.float32)
    return q.new_empty(batch, seqlen_q, nheads, v.shape[3]), lse


def _backward_fake(
    dout: Tensor, out: Tensor, lse: Tensor, q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, *rest: Any
) -> tuple[Tensor, ...]:
    dsinks = q.new_empty(0 if sinks is None else sinks.shape, dtype=torch.float32)
    return *(x.new_empty(x.shape) for x in (q, k, v)), dsinks


# ROCm's tensors have CUDA's key; an emulation's are on the CPU.
for _key in ("CPU", "CUDA"):
    _library.impl("forward", _forward_impl, _key)
    _library.impl("backward", _backward_impl, _key)
torch.library.register_fake("xattn_rocm_triton::forward", _forward_fake, lib=_library)
torch.library.register_fake("xattn_rocm_triton::backward", _backward_fake, lib=_library)


class Attend(Function):
    """(q, k, v, sinks, alibi_slopes, scale, causal, left, layout) -> out, differentiable in q, k, v and sinks."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, alibi_slopes: Tensor | None,
        scale: float, causal: bool, left: int | None, layout: str,
    ) -> Tensor:  # fmt: skip
        out: Tensor
        out, lse = _forward(q, k, v, sinks, alibi_slopes, scale, causal, left, layout)
        ctx.save_for_backward(out, lse, q, k, v, sinks, alibi_slopes)
        ctx.options = (scale, causal, left, layout)
        return out

    @staticmethod
    @derivatives.first_alone("aiter-triton")
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        sinks = ctx.saved_tensors[5]
        dq, dk, dv, dsinks = _backward(dout, *ctx.saved_tensors, *ctx.options)
        return dq, dk, dv, None if sinks is None else dsinks.to(sinks.dtype), None, None, None, None, None
