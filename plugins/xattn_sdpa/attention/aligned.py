"""Rows that begin at multiples of 16 bytes. On others cuDNN computes garbage without a word, and torch's flash kernel
ends the process with a misaligned address (run on an NVIDIA H200, torch 2.11, cuDNN 9.19).

And gradients in the layout of the output. torch keeps cuDNN's plan of a backward pass by the strides of q, k and v, and
not by those of the gradient that comes in: in another layout than at the first call it is read wrongly, without a word
(run on an NVIDIA H100, torch 2.11).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from xattn.plugin.tensors import is_plain


def aligned(x: Tensor) -> Tensor:
    """x, (..., headdim) with headdim a multiple of 16 bytes, with aligned rows: itself, or a copy."""
    if torch.compiler.is_compiling():
        copied: Tensor = _Copy.apply(x)  # type: ignore[no-untyped-call]
        return copied
    size = 16 // x.element_size()
    # Of what stands for other tensors, as inside torch.vmap and torch.func.grad, nobody sees where rows begin.
    if (
        is_plain(x)
        and x.data_ptr() % 16 == 0
        and all(n == 1 or step % size == 0 for n, step in zip(x.shape[:-1], x.stride()[:-1], strict=True))
    ):
        return x
    return x.clone(memory_format=torch.contiguous_format)


def with_aligned_grad(out: Tensor) -> Tensor:
    """out, BNSH over memory that is BSNH, whose gradient reaches the kernel's backward in the same layout: a caller may
    hand in a view of anything."""
    if torch.compiler.is_compiling():
        same: Tensor = _CopyGrad.apply(out)  # type: ignore[no-untyped-call]
        return same
    if out.requires_grad and is_plain(out):
        strides = out.stride()
        out.register_hook(lambda grad: laid_out(grad, strides))
    return out


def laid_out(grad: Tensor, strides: tuple[int, ...]) -> Tensor:
    """A gradient of these strides, with aligned rows: itself, or a copy."""
    if not is_plain(grad) or grad.is_meta or (grad.stride() == strides and grad.data_ptr() % 16 == 0):
        return grad
    return torch.empty_strided(grad.shape, strides, dtype=grad.dtype, device=grad.device).copy_(grad)


# A graph does not see where the rows of its inputs begin, so it copies them, by an operator: torch.compile takes away a
# clone, as one that changes nothing.
_library = torch.library.Library("xattn_sdpa", "FRAGMENT")
_library.define("copy(Tensor x) -> Tensor")
_copy = torch.ops.xattn_sdpa.copy.default


def _copy_impl(x: Tensor) -> Tensor:
    return x.clone(memory_format=torch.contiguous_format)


_library.impl("copy", _copy_impl, "CUDA")
torch.library.register_fake("xattn_sdpa::copy", _copy_impl, lib=_library)


class _Copy(Function):
    """A copy of a kernel's input; its gradient needs none."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        copied: Tensor = _copy(x)
        return copied

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


class _CopyGrad(Function):
    """A kernel's output as it is, whose gradient is a copy."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        copied: Tensor = _copy(grad.transpose(1, 2))
        return copied.transpose(1, 2)
