"""apply_rotary in float64 NumPy, and the second way of saying it: as a complex product."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from xattn_conformance.array import Array

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
