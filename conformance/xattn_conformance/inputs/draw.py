"""Values out of Philox words by integer arithmetic: no libm, no platform's normal distribution."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import numpy as np
from numpy.typing import NDArray

from xattn_conformance.array import Array
from xattn_conformance.inputs.philox import words

Shape = tuple[int, ...]
Ints = NDArray[np.int64]

# A sum of 8 bytes has the mean 1020 and the standard deviation 209.02; this makes it 1.0015, and 18 bits are exact in
# float32 as in float64.
_UNIT = 157 / 2**15
_BYTES = np.uint32(0x00FF00FF)


class Draw:
    """A case's random tensors. Element i of a tensor depends on the seed, the stream and i alone.

    streams: by the name of what is drawn, its own stream of words, 0 .. 2^32 - 1. An op's are in its room.
    """

    def __init__(self, seed: int, streams: Mapping[str, int]) -> None:
        self.seed, self.streams = seed, streams

    def integers(self, stream: str, shape: Shape) -> Ints:
        """32 bits."""
        return words(self.seed, self.streams[stream], 0, prod(shape)).astype(np.int64).reshape(shape)

    def bells(self, stream: str, shape: Shape) -> Ints:
        """-1020 .. 1020, nearly normal: sums of 8 bytes less their mean."""
        drawn = words(self.seed, self.streams[stream], 0, 2 * prod(shape))
        pairs = (drawn & _BYTES) + ((drawn >> np.uint32(8)) & _BYTES)
        sums = (pairs & np.uint32(0xFFFF)) + (pairs >> np.uint32(16))
        totals: Ints = (sums[0::2] + sums[1::2]).astype(np.int64) - 1020
        return totals.reshape(shape)

    def normal(self, stream: str, shape: Shape) -> Array:
        """Mean 0, standard deviation 1, within 4.9."""
        return self.bells(stream, shape).astype(np.float64) * _UNIT

    def uniform(self, stream: str, shape: Shape) -> Array:
        """[0, 1) in steps of 2^-24."""
        return (self.integers(stream, shape) >> 8).astype(np.float64) * 2.0**-24

    def signs(self, stream: str, shape: Shape) -> Array:
        """-1 or 1."""
        return 1.0 - 2.0 * (self.integers(stream, shape) & 1).astype(np.float64)
