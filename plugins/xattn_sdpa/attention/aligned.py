"""Rows that begin at multiples of 16 bytes. On others cuDNN computes garbage without a word, and torch's flash kernel
ends the process with a misaligned address (run on an NVIDIA H200, torch 2.11, cuDNN 9.19)."""

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
    """out, whose gradient reaches the kernel's backward with aligned rows: a caller may hand in a view of anything.

    Not in a graph: there the gradients that come in are made contiguous.
    """
    if out.requires_grad and not torch.compiler.is_compiling() and is_plain(out):
        out.register_hook(_aligned_grad)
    return out


def _aligned_grad(grad: Tensor) -> Tensor:
    if not is_plain(grad) or grad.is_meta:
        return grad
    return aligned(grad if grad.stride(-1) == 1 else grad.contiguous())
