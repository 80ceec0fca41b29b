"""A rotation in float64 NumPy, the second way of saying it, as a complex product, and its noise: two products and their
sum in float32, and one rounding to the dtype."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from xattn_conformance.array import Array
from xattn_conformance.tolerance.expected import Expected
from xattn_conformance.tolerance.rounding import rounding, square
from xattn_conformance.tolerance.units import SINGLE, UNITS

Ints = NDArray[np.int64]


def rotated(x: Array, cos: Array, sin: Array, interleaved: bool) -> Array:
    """x (batch, seqlen, heads, headdim); cos, sin (seqlen, pairs) or (batch, seqlen, pairs). What is past the pairs
    stays."""
    pairs = cos.shape[-1]
    c, s = cos[..., None, :], sin[..., None, :]
    first, second = places(pairs, interleaved)
    out: Array = x.copy()
    out[..., first] = x[..., first] * c - x[..., second] * s
    out[..., second] = x[..., second] * c + x[..., first] * s
    return out


def as_complex(x: Array, cos: Array, sin: Array, interleaved: bool) -> Array:
    """The same, written another way."""
    pairs = cos.shape[-1]
    turned, rest = x[..., : 2 * pairs], x[..., 2 * pairs :]
    grouped = turned.reshape(*turned.shape[:-1], *((pairs, 2) if interleaved else (2, pairs)))
    if not interleaved:
        grouped = np.swapaxes(grouped, -1, -2)
    z = (grouped[..., 0] + 1j * grouped[..., 1]) * (cos + 1j * sin)[..., None, :]
    both = np.stack([z.real, z.imag], axis=-1 if interleaved else -2)
    whole: Array = np.concatenate([both.reshape(turned.shape), rest], axis=-1)
    return whole


def places(pairs: int, interleaved: bool) -> tuple[Ints, Ints]:
    """The dimensions that are the first and the second of each pair."""
    number = np.arange(pairs, dtype=np.int64)
    return (2 * number, 2 * number + 1) if interleaved else (number, number + pairs)


def expected(x: Array, cos: Array, sin: Array, interleaved: bool, dtype: str) -> Expected:
    """The rotated x, as x lies."""
    value = rotated(x, cos, sin, interleaved)
    first, second = places(cos.shape[-1], interleaved)
    c, s = cos[..., None, :], sin[..., None, :]
    sigma = np.zeros_like(value)  # what passes through, passes through exactly
    for own, other in ((first, second), (second, first)):
        size = square(value[..., own])
        variance = SINGLE.u**2 / 3 * (square(x[..., own] * c) + square(x[..., other] * s) + size)
        variance = variance + SINGLE.smallest**2 / 4
        if dtype != "float32":
            variance = variance + rounding(UNITS[dtype], size)
        # Quarter turns round nothing, nor do those that double.
        exact = np.isin(np.abs(c) + np.abs(s), (1, 2)) & (c * s == 0)
        sigma[..., own] = np.where(exact, 0.0, np.sqrt(variance))
    return Expected(value, sigma)
