"""Floating-point formats, and rounding to them by integer arithmetic: no platform's casts, no libm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xattn_conformance.array import Array

Bits = NDArray[np.unsignedinteger[Any]]


@dataclass(frozen=True)
class Format:
    """A binary format: a sign, `width - 1 - fraction` bits of exponent, `fraction` bits of fraction.

    exponent: of the smallest normal number, 2^exponent.
    last:     the code of the largest finite number.
    overflow: the code of what is beyond it: inf, or NaN where the format has no inf. torch 2.13 saturates there; an
              input that does not fit must show, not turn into another number.
    nan:      the code that every NaN is encoded as.
    """

    name: str
    width: int
    fraction: int
    exponent: int
    last: int
    overflow: int
    nan: int

    @property
    def codes(self) -> np.dtype[Any]:
        """The unsigned integer that holds a code."""
        return np.dtype(f"uint{self.width}")

    @property
    def unit_roundoff(self) -> float:
        """The largest relative error of rounding to a normal number."""
        return 2.0 ** -(self.fraction + 1)

    @property
    def smallest_normal(self) -> float:
        return 2.0**self.exponent

    @property
    def smallest_subnormal(self) -> float:
        return 2.0 ** (self.exponent - self.fraction)

    @property
    def largest(self) -> float:
        return float(decode(np.array([self.last], self.codes), self.name)[0])


FORMATS = {
    each.name: each
    for each in (
        Format("float32", 32, 23, -126, last=0x7F7FFFFF, overflow=0x7F800000, nan=0x7FC00000),
        Format("float16", 16, 10, -14, last=0x7BFF, overflow=0x7C00, nan=0x7E00),
        Format("bfloat16", 16, 7, -126, last=0x7F7F, overflow=0x7F80, nan=0x7FC0),
        Format("float8_e4m3fn", 8, 3, -6, last=0x7E, overflow=0x7F, nan=0x7F),
    )
}

# float64: bits of fraction, and the exponent of a number whose exponent field is 0 (a subnormal).
_FRACTION = 52
_LOWEST = -1022


def encode(values: Array, name: str) -> Bits:
    """The codes of float64 values, rounded to nearest, ties to even."""
    target = FORMATS[name]
    bits = np.ascontiguousarray(values, np.float64).view(np.int64).reshape(np.shape(values))
    field = (bits >> _FRACTION) & 0x7FF
    significand = (bits & ((1 << _FRACTION) - 1)) | ((field > 0).astype(np.int64) << _FRACTION)
    exponent = np.maximum(field, 1) + (_LOWEST - 1)
    # Below the smallest normal number the spacing stays what it is there. A shift of 54 leaves nothing of 53 bits.
    spacing = np.maximum(exponent, target.exponent)
    shift = np.minimum(_FRACTION - target.fraction + spacing - exponent, _FRACTION + 2)
    half = np.left_shift(1, shift - 1)
    kept = (significand + half - 1 + ((significand >> shift) & 1)) >> shift
    # The leading bit of `kept`, where there is one, adds 1 to the exponent field; so does a carry out of rounding.
    code = ((spacing - target.exponent) << target.fraction) + kept
    code = np.where(code > target.last, target.overflow, code)
    code |= (bits < 0).astype(np.int64) << (target.width - 1)
    # A NaN's sign and payload differ between processors.
    return np.where(np.isnan(values), target.nan, code).astype(target.codes)


def decode(codes: Bits, name: str) -> Array:
    """The float64 values of codes, exactly."""
    source = FORMATS[name]
    code = codes.astype(np.int64)
    magnitude = code & ((1 << (source.width - 1)) - 1)
    field = magnitude >> source.fraction
    significand = (magnitude & ((1 << source.fraction) - 1)) | ((field > 0).astype(np.int64) << source.fraction)
    values = np.ldexp(significand.astype(np.float64), np.maximum(field, 1) - 1 + source.exponent - source.fraction)
    beyond = np.nan if source.overflow == source.nan else np.inf
    values = np.where(magnitude > source.last, np.where(magnitude == source.overflow, beyond, np.nan), values)
    return np.where(code >> (source.width - 1), -values, values)


def round_to(values: Array, name: str) -> Array:
    """float64 values rounded to a format, as float64."""
    return decode(encode(values, name), name)
