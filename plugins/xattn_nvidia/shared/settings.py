"""The plain numbers of a call, as the operators take them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Settings(NamedTuple):
    """left, right: counted from the bottom right, None is open. splits: over the keys, 0 lets the kernel choose."""

    scale: float
    left: int | None
    right: int | None
    softcap: float | None
    splits: int
    deterministic: bool


# Of an operator's schema.
NUMBERS = "float scale, SymInt? left, SymInt? right, float? softcap, int splits, bool deterministic"


def signed(q: Tensor, scale: float) -> tuple[Tensor, float]:
    """The same scores by a scale above 0: the kernels hide keys before they scale, and -inf * 0 is NaN."""
    if scale > 0:
        return q, scale
    return q * sign(scale), abs(scale) or 1.0


def sign(scale: float) -> float:
    return float(scale > 0) - float(scale < 0)


def aligned(x: Tensor) -> Tensor:
    """x with rows that begin at multiples of 16 bytes: itself, or a copy."""
    size = 16 // x.element_size()
    steps = zip(x.shape[:-1], x.stride()[:-1], strict=True)
    if x.data_ptr() % 16 == 0 and all(n == 1 or (step > 0 and step % size == 0) for n, step in steps):
        return x
    return x.clone(memory_format=torch.contiguous_format)
