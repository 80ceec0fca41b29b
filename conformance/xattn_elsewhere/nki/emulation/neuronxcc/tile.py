"""The legacy namespace's tensors: indexed and assigned to as NumPy's, with operators.

Source: "NKI Programming Model" and `nki.language.ndarray` in the AWS Neuron documentation of SDK 2.26.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from xattn_elsewhere.nki.emulation.access import index_of, spread
from xattn_elsewhere.nki.emulation.dtypes import Array, DType, bfloat16, dtype_of, float16, float32
from xattn_elsewhere.nki.emulation.launch import program
from xattn_elsewhere.nki.emulation.memory import PARTITIONS, PSUM_BANK_BYTES, PSUM_BANKS
from xattn_elsewhere.nki.emulation.operators import OPERATORS, Operator
from xattn_elsewhere.nki.emulation.tensor import LimitError, Region, Tensor, copied, poisoned

RANK = {bfloat16: 0, float16: 0, float32: 1}


@dataclass(frozen=True)
class Partitions:
    """nl.par_dim: the axis of a shape that is the partitions; the axes before it are blocks, tiles of their own."""

    size: int


class Skipped:
    """What a call returns whose mask is False: to assign it changes nothing."""


SKIPPED = Skipped()


@dataclass(frozen=True)
class LoopReduced:
    """What nl.loop_reduce returns: to assign it reduces onto what is there."""

    tile: Any
    op: Operator


class Tile(Tensor):
    """axis: the partitions', or None in HBM."""

    def __init__(self, data: Array, dtype: DType, region: Region, axis: int | None = None) -> None:
        super().__init__(data, dtype, region)
        self._axis = axis

    def __getitem__(self, key: Any) -> Tile:
        """An integer drops an axis of HBM or of blocks, and keeps one of a tile."""
        kept = [self._axis is not None and axis >= self._axis for axis in range(self.ndim)]
        index = tuple(index_of(*each) for each in zip(spread(key, self.ndim), self.shape, kept, strict=True))
        if self._axis is not None:
            dropped = sum(not isinstance(each, slice) for each in index[: self._axis])
            return Tile(self.data[index], self.dtype, self.buffer, self._axis - dropped)
        # The dots keep a view of one element a view.
        return Tile(self.data[index + (...,)], self.dtype, self.buffer)

    def __setitem__(self, key: Any, value: Any) -> None:
        place = self[key]
        if isinstance(value, Skipped):
            return
        if isinstance(value, LoopReduced):
            place.write(value.op.between(place.values(), value.tile.values()))
        elif isinstance(value, Tensor):
            copied(place, value)
        else:
            place.write(np.full(place.shape, value, np.float32))

    def _fitted(self, values: Array) -> Array:
        """Axes of size 1 do not count; partitions do."""
        if _squeezed(values.shape) != _squeezed(self.shape):
            raise LimitError(f"a tile of shape {values.shape} written to one of shape {self.shape}")
        return values.reshape(self.shape)

    def __mul__(self, other: Any) -> Tile:
        return elementwise(OPERATORS["multiply"], self, other)

    def __rmul__(self, other: Any) -> Tile:
        return elementwise(OPERATORS["multiply"], self, other)

    def __iadd__(self, other: Any) -> Tile:
        """The assignment that follows writes this tile to itself."""
        if not isinstance(other, Skipped):
            self.write(OPERATORS["add"].between(self.values(), other.values()))
        return self


def _squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(size for size in shape if size != 1)


def new(shape: Any, dtype: Any, region: Region = Region.sbuf) -> Tile:
    """A poisoned tile, or one for each block. In PSUM each is of one bank, and all of them fit."""
    kind = dtype_of(dtype)
    given = tuple(shape)
    marked = [axis for axis, size in enumerate(given) if isinstance(size, Partitions)]
    sizes = tuple(int(size.size if isinstance(size, Partitions) else size) for size in given)
    if not region.on_chip:
        return Tile(program().hbm(sizes, kind, region), kind, region)
    axis = marked[0] if marked else 0
    if not 0 < sizes[axis] <= PARTITIONS:
        raise LimitError(f"{sizes}: {sizes[axis]} partitions; {region.value} has {PARTITIONS}")
    bank = int(np.prod(sizes[axis + 1 :])) * kind.bytes
    if region is Region.psum and (bank > PSUM_BANK_BYTES or np.prod(sizes[:axis]) > PSUM_BANKS):
        raise LimitError(f"{sizes} of {kind}: {bank} bytes of a partition in each block; a bank of PSUM has 2048")
    data = np.empty(sizes, kind.storage)
    poisoned(data, kind)
    return Tile(data, kind, region, axis)


def tile_of(values: Array, dtype: Any, region: Region = Region.sbuf) -> Tile:
    """float32 values as a new tile, rounded."""
    tile = new(values.shape, dtype, region)
    tile.write(values)
    return tile


def promoted(*operands: Any) -> DType:
    """The widest type of the tiles among the operands; a scalar does not count."""
    kinds = [each.dtype for each in operands if isinstance(each, Tensor)]
    widest = max(kinds, key=lambda kind: RANK[kind])
    if len({kind for kind in kinds if RANK[kind] == RANK[widest]}) > 1:
        raise NotImplementedError(f"the type of a result of {', '.join(map(str, kinds))}")
    return widest


def elementwise(op: Operator, left: Any, right: Any, dtype: Any = None) -> Tile:
    """In float32, broadcast over the free axes, and to all partitions from a tile of one element."""
    operands = [each.values() if isinstance(each, Tensor) else np.float32(each) for each in (left, right)]
    lanes = {each.shape[0] for each in (left, right) if isinstance(each, Tensor) and each.size > 1}
    if len(lanes) > 1:
        raise LimitError(f"{op.name} of {left!r} and {right!r}")
    return tile_of(op.between(*operands), dtype or promoted(left, right))
