"""The tensors of the current namespace: views by index and by access pattern.

Source: `nki.language.NkiTensor` in the AWS Neuron documentation (SDK 2.32: nki/api/nki/language).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from xattn_elsewhere.nki.emulation.dtypes import Array, DType, dtype_of
from xattn_elsewhere.nki.emulation.tensor import LimitError, Region, Tensor


def ds(start: int, size: int) -> slice:
    """nl.ds: `size` elements from `start` on."""
    return slice(start, start + size)


def index_of(key: Any, size: int, keep: bool) -> Any:
    """One index into an axis, checked: NumPy would cut off a slice that reaches too far.

    keep: whether an integer leaves an axis of size 1.
    """
    if isinstance(key, slice):
        start, stop, step = key.start or 0, size if key.stop is None else key.stop, key.step or 1
        if not (0 <= start < stop <= size and step >= 1):
            raise LimitError(f"the slice {start}:{stop}:{step} of an axis of {size}")
        return slice(start, stop, step)
    place = int(key)
    if not -size <= place < size:
        raise LimitError(f"index {place} into an axis of {size}")
    place %= size
    return slice(place, place + 1) if keep else place


def spread(key: Any, ndim: int) -> list[Any]:
    """A key as one index for each axis: `...` and what is left out are whole axes."""
    keys = list(key) if isinstance(key, tuple) else [key]
    if any(each is Ellipsis for each in keys):
        at = next(place for place, each in enumerate(keys) if each is Ellipsis)
        keys[at : at + 1] = [slice(None)] * (ndim - len(keys) + 1)
    if len(keys) > ndim:
        raise LimitError(f"{len(keys)} indices into {ndim} axes")
    return keys + [slice(None)] * (ndim - len(keys))


class NkiTensor(Tensor):
    """root: the tensor as it was allocated, whose elements an access pattern counts in row-major order.
    address: of the root: its first partition, and its first byte in each; (0, 0) where the kernel gave none.
    """

    def __init__(
        self,
        data: Array,
        dtype: DType,
        region: Region,
        started: Array | None = None,
        root: NkiTensor | None = None,
        address: tuple[int, int] = (0, 0),
    ) -> None:
        super().__init__(data, dtype, region, started)
        self.root = self if root is None else root
        self.address = address

    def _view(self, data: Array, started: Array | None) -> NkiTensor:
        return NkiTensor(data, self.dtype, self.buffer, started, self.root)

    def __getitem__(self, key: Any) -> NkiTensor:
        """On the chip an integer keeps the partition axis, and a view has two axes at least; in HBM one at least."""
        on_chip = self.buffer.on_chip
        keys = spread(key, self.ndim)
        kept = [on_chip and axis == 0 for axis in range(self.ndim)]
        least = 2 if on_chip else 1
        dropped = [axis for axis in range(self.ndim) if not isinstance(keys[axis], slice) and not kept[axis]]
        for axis in dropped[max(0, self.ndim - least) :]:
            kept[axis] = True
        index = tuple(index_of(*each) for each in zip(keys, self.shape, kept, strict=True))
        return self._view(self.data[index], None if self.started is None else self.started[index])

    def __setitem__(self, key: Any, value: Any) -> None:
        raise LimitError("the current namespace writes to tensors by nki.isa alone")

    def reshape(self, shape: Sequence[int]) -> NkiTensor:
        sizes = tuple(shape)
        if self is not self.root:
            raise NotImplementedError("nki.language.NkiTensor.reshape of a view")
        if math.prod(sizes) != self.size or (self.buffer.on_chip and sizes[0] != self.shape[0]):
            raise LimitError(f"{self.shape} cannot be seen as {sizes}")
        # No copy: what is in a partition is contiguous.
        started = None if self.started is None else self.started.reshape(sizes)
        return NkiTensor(self.data.reshape(sizes), self.dtype, self.buffer, started, address=self.address)

    def ap(
        self,
        pattern: Sequence[Sequence[int]],
        offset: int | None = None,
        scalar_offset: NkiTensor | None = None,
        vector_offset: NkiTensor | None = None,
        indirect_dim: int = 0,
        dtype: Any = None,
    ) -> NkiTensor:
        """[[stride, count], ...] over the elements of the allocated tensor; on the chip the first counts partitions.

        scalar_offset: a tensor of one index into axis `indirect_dim`, read now, as the program runs in order.
        """
        if vector_offset is not None or (dtype is not None and dtype_of(dtype) != self.dtype):
            raise NotImplementedError("nki.language.NkiTensor.ap with vector_offset or another dtype")
        if self is not self.root:
            raise NotImplementedError("nki.language.NkiTensor.ap of a view")
        start = offset or 0
        if scalar_offset is not None:
            index = index_of(scalar_offset.data.item(), self.shape[indirect_dim], keep=False)
            start += index * math.prod(self.shape[indirect_dim + 1 :])
        steps, counts = [int(step) for step, _ in pattern], tuple(int(count) for _, count in pattern)
        if min(counts) < 1 or min(steps) < 0 or start < 0:
            raise LimitError(f"the access pattern {pattern} from {start}")
        data = self._strided(self.data, steps, counts, start)
        started = None if self.started is None else self._strided(self.started, steps, counts, start)
        return NkiTensor(data, self.dtype, self.buffer, started, self)

    def _strided(self, array: Array, steps: list[int], counts: tuple[int, ...], start: int) -> Array:
        """The axes that the pattern walks over together, (1 or partitions, elements), as strides in bytes."""
        lanes = self.shape[0] if self.buffer.on_chip else 1
        length = self.size // lanes
        lane, element = divmod(start, length) if self.buffer.on_chip else (0, start)
        inner = list(zip(steps, counts, strict=True))
        outer = []
        if self.buffer.on_chip:
            step, count = inner.pop(0)
            if count > 1 and step % length:
                raise LimitError(f"a step of {step} between partitions of {length} elements")
            lane_step = step // length
            if lane + (count - 1) * lane_step >= lanes:
                raise LimitError(f"{count} partitions from {lane} on, of {lanes}")
            outer = [lane_step * array.strides[0]]
        if element + sum((count - 1) * step for step, count in inner) >= length:
            raise LimitError(f"the access pattern {inner} from {element} on leaves the {length} elements there are")
        flat = _flat(array, lanes)[lane:, element:]
        strides = (*outer, *(step * array.itemsize for step, _ in inner))
        return np.lib.stride_tricks.as_strided(flat, counts, strides)


def _flat(array: Array, lanes: int) -> Array:
    """An allocated tensor's elements, (lanes, elements), without a copy."""
    return np.lib.stride_tricks.as_strided(
        array, (lanes, array.size // lanes), (array.strides[0] if lanes > 1 else 0, array.itemsize)
    )
