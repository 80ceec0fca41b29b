"""Rows that begin at multiples of 16 bytes. On others cuDNN computes garbage without a word, and torch's flash kernel
ends the process with a misaligned address (run on an NVIDIA H200, torch 2.11, cuDNN 9.19).

And gradients in the layout of the output. torch keeps cuDNN's plan of a backward pass by the strides of q, k and v, and
not by those of the gradient that comes in: in another layout than at the first call it is read wrongly, without a word
(run on an NVIDIA H100, torch 2.11).
"""

from __future__ import annotations

import torch
from torch import Tensor

from xattn.plugin.tensors import is_plain


def aligned(x: Tensor) -> Tensor:
    """x, (..., headdim) with headdim a multiple of 16 bytes, with aligned rows: itself, or a copy. Needs a tensor that
    has memory."""
    size = 16 // x.element_size()
    if x.data_ptr() % 16 == 0 and all(
        n == 1 or step % size == 0 for n, step in zip(x.shape[:-1], x.stride()[:-1], strict=True)
    ):
        return x
    return x.clone(memory_format=torch.contiguous_format)


def with_aligned_grad(out: Tensor) -> Tensor:
    """out, whose gradient reaches the kernel's backward in the layout of out: a caller may hand in a view of anything.

    Not in a graph: there the gradients that come in are made contiguous.
    """
    if out.requires_grad and not torch.compiler.is_compiling() and is_plain(out):
        strides = out.stride()
        out.register_hook(lambda grad: laid_out(grad, strides))
    return out


def laid_out(grad: Tensor, strides: tuple[int, ...]) -> Tensor:
    """A gradient of these strides, with aligned rows: itself, or a copy."""
    if not is_plain(grad) or grad.is_meta or (grad.stride() == strides and grad.data_ptr() % 16 == 0):
        return grad
    return torch.empty_strided(grad.shape, strides, dtype=grad.dtype, device=grad.device).copy_(grad)
