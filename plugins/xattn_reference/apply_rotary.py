"""`apply_rotary` in plain PyTorch, on any device.

Each operation is one that autograd differentiates without a saved activation: of q and k it keeps nothing, of cos and
sin the tensors themselves. So the gradient is the inverse rotation, in the same precision as the rotation, and double
backward, functorch and torch.compile come with it.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from xattn import RotaryKernel, RotaryRequest
from xattn.plugin import Plan
from xattn_reference.block import everything


class ReferenceRotary(RotaryKernel):
    capabilities = (everything(RotaryRequest),)

    def plan(self, request: RotaryRequest) -> Plan:
        return functools.partial(apply_rotary, interleaved=request.interleaved)

    def kernel_name(self, request: RotaryRequest) -> str:
        return "PyTorch products and sums"


def apply_rotary(
    q: Tensor, k: Tensor | None, cos: Tensor, sin: Tensor, interleaved: bool
) -> tuple[Tensor, Tensor | None]:
    """Shapes as in `xattn.apply_rotary`. Computes in float32, or in float64 for float64 tensors."""
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    # One row serves all heads: (batch or none, seqlen, 1, rotary_dim / 2).
    cos, sin = cos.to(wide).unsqueeze(-2), sin.to(wide).unsqueeze(-2)
    return _rotated(q, cos, sin, interleaved), None if k is None else _rotated(k, cos, sin, interleaved)


def _rotated(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    rotary_dim = 2 * cos.shape[-1]
    rests = [] if rotary_dim == x.shape[-1] else [x.shape[-1] - rotary_dim]
    # Splits, not slices: the gradient of a slice is a tensor of zeros as large as x, and sums of them. Into no empty
    # part, of which the gradient of a DTensor would be none.
    turned, *rest = x.split([rotary_dim, *rests], -1)
    # A view of the pairs: (..., rotary_dim / 2, 2) or (..., 2, rotary_dim / 2).
    axis, sizes = (-1, (-1, 2)) if interleaved else (-2, (2, -1))
    # Widened before the products: a gradient is then summed in float32 and rounded once.
    one, other = turned.to(cos.dtype).unflatten(-1, sizes).unbind(axis)
    pairs = torch.stack(((one * cos - other * sin).to(x.dtype), (other * cos + one * sin).to(x.dtype)), axis)
    rotated = pairs.flatten(-2)
    return (torch.cat((rotated, *rest), -1) if rest else rotated).contiguous()
