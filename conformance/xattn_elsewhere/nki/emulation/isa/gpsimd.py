"""The GpSimd Engine, which does not reach PSUM."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from xattn_elsewhere.nki.emulation.dtypes import Array
from xattn_elsewhere.nki.emulation.isa.target import same_size, tiles
from xattn_elsewhere.nki.emulation.operators import operator_of
from xattn_elsewhere.nki.emulation.tensor import LimitError


def _affine(dst: Any, pattern: Sequence[Sequence[int]], offset: int, channel_multiplier: int) -> Array:
    """offset + partition * channel_multiplier + the sum of index * step over the pattern: (partitions, elements)."""
    inner = np.zeros(1, np.int64)
    for step, count in pattern:
        inner = (inner[:, None] + step * np.arange(count)).reshape(-1)
    if len(pattern) > 4 or inner.size != dst.size // dst.shape[0]:
        raise LimitError(f"the pattern {pattern} for a tile of {dst.shape}")
    values: Array = offset + channel_multiplier * np.arange(dst.shape[0])[:, None] + inner
    return values


def iota(
    dst: Any,
    pattern: Sequence[Sequence[int]],
    offset: int = 0,
    channel_multiplier: int = 0,
    name: str | None = None,
) -> None:
    tiles("iota", dst, psum=False)
    dst.write(_affine(dst, pattern, offset, channel_multiplier))


def affine_select(
    dst: Any,
    pattern: Sequence[Sequence[int]],
    channel_multiplier: int,
    on_true_tile: Any,
    on_false_value: float,
    cmp_op: Any,
    offset: int = 0,
    name: str | None = None,
) -> None:
    """on_true_tile where <affine value> <cmp_op> 0, and on_false_value elsewhere."""
    tiles("affine_select", dst, on_true_tile, psum=False)
    same_size("affine_select", dst, on_true_tile)
    chosen = operator_of(cmp_op).between(_affine(dst, pattern, offset, channel_multiplier), 0) != 0
    data = on_true_tile.values().reshape(chosen.shape)
    dst.write(np.where(chosen, data, np.float32(on_false_value)))


def tensor_partition_reduce(dst: Any, op: Any, data: Any, name: str | None = None) -> None:
    """Over the partitions: (1, ...)."""
    for each in (dst, data):
        tiles("tensor_partition_reduce", each, psum=False)
    if operator_of(op).name not in ("add", "maximum"):
        raise LimitError(f"nki.isa.tensor_partition_reduce by {operator_of(op).name}")
    dst.write(operator_of(op).over(data.values(), (0,)))
