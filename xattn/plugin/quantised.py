"""Quantised storage: x = stored * scale. The formulas of the contract, as kernels, caches and checks share them.

A scale's rank says what has one of its own: () all, (nheads_k,) a head, (num_blocks, nheads_k) a head of a block,
(num_blocks, block_size, 1) a token, (num_blocks, block_size, nheads_k) a head of a token.
"""

from __future__ import annotations

import torch
from torch import Tensor

from xattn.plugin.symbolic import holds

# The largest number that is stored. uint8 holds int4: two's complement, the even dimension in the low nibble.
QMAX = {torch.float8_e4m3fn: 448.0, torch.float8_e4m3fnuz: 240.0, torch.int8: 127.0, torch.uint8: 7.0}
INT4 = torch.uint8
# What queries may be quantised as, beside a scale.
FP8 = frozenset({torch.float8_e4m3fn, torch.float8_e4m3fnuz})


def scale_shapes(cache: Tensor) -> dict[str, tuple[int, ...]]:
    """The legal shapes of a scale of a cache (num_blocks, block_size, nheads_k, columns), by their names."""
    num_blocks, block_size, nheads_k = cache.shape[:3]
    return {
        "()": (),
        "(nheads_k,)": (nheads_k,),
        "(num_blocks, nheads_k)": (num_blocks, nheads_k),
        "(num_blocks, block_size, 1)": (num_blocks, block_size, 1),
        "(num_blocks, block_size, nheads_k)": (num_blocks, block_size, nheads_k),
    }


def columns(headdim: int, dtype: torch.dtype) -> int:
    """How many elements of a cache hold a head."""
    return headdim // 2 if dtype == INT4 else headdim


def as_bytes(cache: Tensor) -> Tensor:
    """Quantised numbers as what torch can index, copy and compare on any device."""
    return cache.view(torch.uint8)


def scale_at(scale: Tensor, block: Tensor, place: Tensor) -> Tensor:
    """The scales of keys that lie at these blocks and places: as `block`, (..., nheads_k or 1, 1) behind it."""
    if scale.dim() == 0:
        return scale
    if scale.dim() == 1:
        return scale.unsqueeze(-1)
    rows = scale[block] if scale.dim() == 2 else scale[block, place]
    return rows.unsqueeze(-1)


def is_written(scale: Tensor) -> bool:
    """Whether writing sets the scale: that of a token, or of its heads, follows from the token."""
    return scale.dim() == 3


def quantised(x: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """x (..., headdim) / scale, both in float32, cut off at the largest number and rounded half to even. int4 comes in
    halves of a byte, (..., headdim / 2). What is no number has no integer: 0."""
    qmax = QMAX[dtype]
    levels = (x.float() / scale).clamp_(-qmax, qmax)
    if dtype.is_floating_point:
        return levels.to(dtype)
    whole = levels.round_().nan_to_num_(0.0).to(torch.int8)
    if dtype != INT4:
        return whole
    # Two bytes as one integer, the even dimension in its lower half: a third of the time of strided bytes.
    pairs = whole.contiguous().view(torch.int16) & 0x0F0F
    return (pairs | pairs >> 4).to(torch.uint8)


def dequantised(stored: Tensor, scale: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """stored * scale in float32, rounded to dtype: (..., headdim)."""
    if stored.dtype == INT4:
        low, high = (stored << 4).view(torch.int8) >> 4, stored.view(torch.int8) >> 4
        levels = torch.stack((low, high), -1).flatten(-2).float()
    else:
        levels = stored.float()
    return (levels * scale).to(dtype)


def scale_for(x: Tensor, dtype: torch.dtype, scale: Tensor) -> Tensor:
    """The least scale that cuts nothing off: (tokens, nheads_k) of x (tokens, nheads_k, headdim), or (tokens, 1), one
    for all heads of a token, as the last dimension of `scale` has it. 1 where all is 0."""
    largest = x.float().abs().amax(-1)
    if holds(scale.shape[2] != x.shape[1]):
        largest = largest.amax(-1, keepdim=True)
    # By a number, CUDA multiplies with its reciprocal, one bit off.
    return torch.where(largest == 0, 1.0, largest / largest.new_full((), QMAX[dtype]))
