"""One NeuronCore's memories: SBUF and PSUM, 128 partitions each, by address where a kernel gives addresses.

Tiles that a kernel puts at one address share their bytes, as they do on the chip. A tile without an address has bytes
of its own: where the compiler would have put it, and whether all of them fit, is not known here. Sizes: the Trainium2
architecture guide (nki/arch/trainium2_arch) of the AWS Neuron documentation.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from xattn_elsewhere.nki.emulation.dtypes import Array, DType
from xattn_elsewhere.nki.emulation.tensor import LimitError, Region, poisoned

PARTITIONS = 128
SBUF_BYTES = 192 * 1024  # a partition, NeuronCore-v2 and v3
PSUM_BANK_BYTES = 2048  # a partition
PSUM_BANKS = 8
BYTES = {Region.sbuf: SBUF_BYTES, Region.psum: PSUM_BANK_BYTES * PSUM_BANKS}


class Core:
    """The memories of the core that runs a program."""

    def __init__(self) -> None:
        self._addressed: dict[Region, Array] = {}

    def tile(self, shape: tuple[int, ...], dtype: DType, region: Region, address: tuple[int, int] | None) -> Array:
        """Codes of shape (partitions, ...), poisoned. address: (first partition, byte in each)."""
        partitions, *free = shape
        count = math.prod(free)
        first, start = address or (0, 0)
        size = count * dtype.bytes
        if not 0 < partitions <= PARTITIONS - first:
            raise LimitError(f"{shape}: {partitions} partitions from {first} on; {region.value} has {PARTITIONS}")
        if start + size > BYTES[region]:
            end, room = start + size, BYTES[region]
            raise LimitError(f"{shape} of {dtype} ends at byte {end} of a partition; {region.value} has {room}")
        if address is None:
            data: Array = np.empty((partitions, count), dtype.storage)
        else:
            rows = self._memory(region)[first : first + partitions]
            data = rows[:, start : start + size].view(dtype.storage)
        poisoned(data, dtype)
        return _reshaped(data, shape)

    def _memory(self, region: Region) -> Array:
        if region not in self._addressed:
            self._addressed[region] = np.empty((PARTITIONS, BYTES[region]), np.uint8)
        return self._addressed[region]


def _reshaped(data: Array, shape: tuple[int, ...]) -> Array:
    """(partitions, elements) as `shape`, without a copy."""
    strides: Any = [data.itemsize]
    for size in reversed(shape[2:]):
        strides.insert(0, strides[0] * size)
    return np.lib.stride_tricks.as_strided(data, shape, (data.strides[0], *strides[: len(shape) - 1]))
