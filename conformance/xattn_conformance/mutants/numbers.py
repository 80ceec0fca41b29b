"""float32 as a kernel computes with it: the rounding points of a declared arithmetic."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xattn_conformance.tolerance.arithmetic import Arithmetic, Place

# Of float32, which the types of mixed expressions lose sight of.
F32 = NDArray[Any]

# Bits of a significand, the leading one included.
BITS = {"float32": 24, "float16": 11, "bfloat16": 8}
TF32_BITS = 11


def nearest(x: F32, bits: int) -> F32:
    """x in `bits` significant bits, ties to even, with float32's range of exponents."""
    dropped = np.uint32(24 - bits)
    if dropped == 0:
        return x
    code = np.ascontiguousarray(x, dtype=np.float32).view(np.uint32)
    half = np.uint32((1 << int(dropped) - 1) - 1)
    rounded = (code + half + ((code >> dropped) & np.uint32(1))) >> dropped << dropped
    # A NaN's payload may carry into the exponent.
    return np.where(np.isnan(x), x, rounded.view(np.float32))


def toward_zero(x: F32, bits: int) -> F32:
    """x cut off after `bits` significant bits."""
    dropped = np.uint32(max(24 - bits, 0))
    code = np.ascontiguousarray(x, dtype=np.float32).view(np.uint32)
    return np.where(np.isfinite(x), (code >> dropped << dropped).view(np.float32), x)


def to_dtype(x: F32, dtype: str) -> F32:
    """x rounded to the nearest value of a dtype."""
    if dtype == "float16":
        with np.errstate(over="ignore"):
            return x.astype(np.float16).astype(np.float32)
    return nearest(x, BITS[dtype])


@dataclass(frozen=True)
class Numbers:
    """The operations of a kernel in the arithmetic that it declares, for inputs of `dtype`."""

    arithmetic: Arithmetic
    dtype: str

    def flush(self, x: F32) -> F32:
        if self.arithmetic.subnormals == "kept":
            return x
        return np.where(np.abs(x) < np.finfo(np.float32).tiny, np.float32(0), x)

    def at(self, place: Place, x: F32) -> F32:
        """x as it is stored at a rounding point."""
        return self.flush(to_dtype(x, self.dtype) if place == "input" else x)

    def matmul(self, a: F32, b: F32) -> F32:
        if self.arithmetic.products == "tf32":
            a, b = nearest(a, TF32_BITS), nearest(b, TF32_BITS)
        # A NaN or inf that some query may see makes NaN in the products of queries that may not; they are masked.
        with np.errstate(invalid="ignore", over="ignore"):
            return self.flush(np.matmul(a, b) if self.arithmetic.sums == "rounded" else _truncated(a, b))

    def exp(self, x: F32) -> F32:
        """Right to the declared bits: cut off, so that all its errors have one sign. One bit is left over, because a
        probability is made of two of these, its own and the rescaling of its tile. Subnormals have fewer bits."""
        with np.errstate(under="ignore", over="ignore", invalid="ignore"):
            exact = np.exp(x)
            cut = toward_zero(exact, self.arithmetic.exp_bits + 2)
        return self.flush(np.where(exact < np.finfo(np.float32).tiny, exact, cut))

    def tanh(self, x: F32) -> F32:
        return self.flush(toward_zero(np.tanh(x), self.arithmetic.tanh_bits + 1))


def _truncated(a: F32, b: F32) -> F32:
    """a @ b as matrix units add it up: eight products at a time, and what is below the sum's last bit is dropped."""
    acc = np.zeros((*np.broadcast_shapes(a.shape[:-2], b.shape[:-2]), a.shape[-2], b.shape[-1]), dtype=np.float32)
    for start in range(0, a.shape[-1], 8):
        some = slice(start, start + 8)
        exact = acc + np.matmul(a[..., some].astype(np.float64), b[..., some, :].astype(np.float64))
        rounded = exact.astype(np.float32)
        acc = np.where(np.abs(rounded) > np.abs(exact), np.nextafter(rounded, np.float32(0)), rounded)
    return acc
