"""aiter's MHA of packed sequences, forward and backward, as torch operators: none of aiter's Python is traced.

aiter's backward is called here, and not by way of aiter's own autograd function, as in `attention/gradients.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from xattn.plugin import derivatives
from xattn_rocm import vendor
from xattn_rocm.aiter_triton.attention.gradients import BACKWARD, check_switch
from xattn_rocm.aiter_triton.attention.kernel import on_its_device
from xattn_rocm.aiter_triton.attention.mha import MODULES
from xattn_rocm.aiter_triton.varlen_attention.sequences import fill_lse, reordered

_library = torch.library.Library("xattn_rocm_triton", "FRAGMENT")
_TENSORS = "Tensor q, Tensor k, Tensor v, Tensor? sinks, Tensor? alibi_slopes, Tensor cu_seqlens_q, Tensor cu_seqlens_k"
_OPTIONS = "SymInt max_seqlen_q, SymInt max_seqlen_k, float scale, bool causal, SymInt? left, str layout"
_library.define(f"varlen_forward({_TENSORS}, {_OPTIONS}, bool return_lse) -> (Tensor, Tensor)")
_library.define(
    f"varlen_backward(Tensor dout, Tensor out, Tensor lse, {_TENSORS}, {_OPTIONS}) -> (Tensor, Tensor, Tensor, Tensor)"
)
_forward = torch.ops.xattn_rocm_triton.varlen_forward.default
_backward = torch.ops.xattn_rocm_triton.varlen_backward.default


def _slopes(alibi_slopes: Tensor | None, q: Tensor, starts: Tensor) -> Tensor | None:
    """(batch, nheads), which aiter reads alone."""
    return None if alibi_slopes is None else alibi_slopes.expand(len(starts) - 1, q.shape[1])


def _forward_impl(
    q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, alibi_slopes: Tensor | None, cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor, max_seqlen_q: int, max_seqlen_k: int, scale: float, causal: bool, left: int | None,
    layout: str, return_lse: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """return_lse: False leaves the lse as aiter has it."""
    module = vendor.module(MODULES[layout])
    check_switch(module)
    # Releases that have no windows and no sinks have no parameters for them.
    given: dict[str, Any] = {} if left is None else {"window_size": (left, -1)}
    if sinks is not None:
        given["sink"] = sinks.contiguous()
    slopes = _slopes(alibi_slopes, q, cu_seqlens_q)
    # The kernel reads them without a stride.
    at_q, at_k = cu_seqlens_q.contiguous(), cu_seqlens_k.contiguous()
    if causal or left is not None:
        at_q, at_k, order = reordered(at_q, at_k, left)
        if slopes is not None:
            slopes = slopes[order].repeat_interleave(2, 0)
    out, lse = module.flash_attn_varlen_func(
        q, k, v, at_q, at_k, max_seqlen_q, max_seqlen_k, alibi_slopes=slopes, softmax_scale=scale, causal=causal,
        return_lse=True, **given,
    )  # fmt: skip
    if return_lse:
        fill_lse(lse, cu_seqlens_q, cu_seqlens_k, causal, sinks)
    # aiter pads some heads, and returns a view of the padded output.
    return out.contiguous(), lse.t()


def _backward_impl(
    dout: Tensor, out: Tensor, lse: Tensor, q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None,
    alibi_slopes: Tensor | None, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, max_seqlen_q: int, max_seqlen_k: int,
    scale: float, causal: bool, left: int | None, layout: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    # The kernel leaves rows of no sequence, and sequences without queries or keys, as they are.
    dq, dk, dv = (torch.zeros(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
    dsinks = q.new_zeros(0 if sinks is None else sinks.shape, dtype=torch.float32)
    given = {} if sinks is None else {"sink": sinks.contiguous(), "dsink": dsinks}
    # Of a query that saw no key every probability is exp(score - inf) = 0.
    rows = lse.masked_fill(lse == -torch.inf, torch.inf).t().contiguous()
    # It reads dout with the strides of out, and lse with those of a buffer of its own.
    vendor.module(BACKWARD[layout]).flash_attn_onekernel_backward(
        dout.contiguous(), q, k, v, out.contiguous(), rows, dq, dk, dv, None, scale,
        _slopes(alibi_slopes, q, cu_seqlens_q), causal, cu_seqlens_q.contiguous(), cu_seqlens_k.contiguous(),
        max_seqlen_q=max_seqlen_q, max_seqlen_k=max_seqlen_k, dropout_p=0.0, USE_INT64_STRIDES=True, **given,
    )  # fmt: skip
    return dq, dk, dv, dsinks


def _forward_fake(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    total_q, nheads, _ = q.shape
    return q.new_empty(total_q, nheads, v.shape[2]), q.new_empty(total_q, nheads, dtype=torch.float32).t()


def _backward_fake(
    dout: Tensor, out: Tensor, lse: Tensor, q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, *rest: Any
) -> tuple[Tensor, ...]:
    dsinks = q.new_empty(0 if sinks is None else sinks.shape, dtype=torch.float32)
    return *(x.new_empty(x.shape) for x in (q, k, v)), dsinks


# ROCm's tensors have CUDA's key; an emulation's are on the CPU.
_library.impl("varlen_forward", _forward_impl, "CPU")
_library.impl("varlen_backward", _backward_impl, "CPU")
_library.impl("varlen_forward", on_its_device(_forward_impl), "CUDA")
_library.impl("varlen_backward", on_its_device(_backward_impl), "CUDA")
torch.library.register_fake("xattn_rocm_triton::varlen_forward", _forward_fake, lib=_library)
torch.library.register_fake("xattn_rocm_triton::varlen_backward", _backward_fake, lib=_library)


def forward() -> Callable[..., tuple[Tensor, Tensor]]:
    """As the operator `varlen_forward`. Eager calls without gradients need none: one costs 20 us."""
    return _forward if torch.compiler.is_compiling() else _forward_impl


def backward() -> Callable[..., tuple[Tensor, Tensor, Tensor, Tensor]]:
    """As the operator `varlen_backward`."""
    return _backward if torch.compiler.is_compiling() else _backward_impl


class Attend(Function):
    """The operator `varlen_forward`, of which out alone, differentiable in q, k, v and sinks."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, alibi_slopes: Tensor | None,
        cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, max_seqlen_q: int, max_seqlen_k: int, scale: float, causal: bool,
        left: int | None, layout: str,
    ) -> Tensor:  # fmt: skip
        out: Tensor
        tensors = (q, k, v, sinks, alibi_slopes, cu_seqlens_q, cu_seqlens_k)
        ctx.options = (max_seqlen_q, max_seqlen_k, scale, causal, left, layout)
        out, lse = _forward(*tensors, *ctx.options, True)
        ctx.save_for_backward(out, lse, *tensors)
        return out

    @staticmethod
    @derivatives.first_alone("aiter-triton")
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        sinks = ctx.saved_tensors[5]
        dq, dk, dv, dsinks = _backward(dout, *ctx.saved_tensors, *ctx.options)
        return dq, dk, dv, None if sinks is None else dsinks.to(sinks.dtype), *([None] * 9)
