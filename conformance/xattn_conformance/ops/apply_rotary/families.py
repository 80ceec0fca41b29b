"""The families of inputs. Each fills in cos and sin, and may change q and k, which come as normal numbers, unrounded.

Sums, products and divisions one after the other, which IEEE 754 fixes to the bit, and no sine or cosine of libm's: a
point of the unit circle is ((1 - t^2) / (1 + t^2), 2 t / (1 + t^2)), and another position a power of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from xattn_conformance.array import Array
from xattn_conformance.inputs.draw import Draw
from xattn_conformance.ops import rotation

# One stream of words for each thing that is drawn. Frozen: a number that changes is another suite.
STREAMS = {
    "q": 0,
    "k": 1,
    "dout": 7,
    "outlier.q": 9,
    "outlier.k": 10,
    "cos": 18,
    "sin": 19,
    "dout_k": 20,
}
# The first position of `far`.
_FAR = 131_072
# Batch rows with positions of their own are so far apart.
_APART = 37


@dataclass(frozen=True)
class Inputs:
    """As in `problem.Rotary`. cos comes empty, in its shape."""

    q: Array
    k: Array
    cos: Array
    sin: Array
    interleaved: bool


def positions(inputs: Inputs, draw: Draw) -> Inputs:
    """The positions 0, 1, 2, ... (of batch row b, from 37 b on), at frequencies from 1 down to about 1 / 10000."""
    return _turned(inputs, 0)


def far(inputs: Inputs, draw: Draw) -> Inputs:
    """Likewise, from position 131072 on."""
    return _turned(inputs, _FAR)


def free(inputs: Inputs, draw: Draw) -> Inputs:
    """cos and sin normal numbers, each for itself: whatever they are, they are taken as they are."""
    return replace(inputs, cos=draw.normal("cos", inputs.cos.shape), sin=draw.normal("sin", inputs.cos.shape))


def outlier(inputs: Inputs, draw: Draw) -> Inputs:
    """As `free`, and one element of q and k in 64 is 256 times as large: beside it its partner counts for little."""

    def spiked(name: str, values: Array) -> Array:
        struck = draw.integers(f"outlier.{name}", values.shape) % 64 == 0
        return np.where(struck, 256 * values, values)

    return replace(free(inputs, draw), q=spiked("q", inputs.q), k=spiked("k", inputs.k))


def quarters(inputs: Inputs, draw: Draw) -> Inputs:
    """Turns by 0, 90, 180 and 270 degrees, which are exact: what goes where, and with which sign."""
    turn = draw.integers("cos", inputs.cos.shape) % 4
    return replace(inputs, cos=np.array([1.0, 0.0, -1.0, 0.0])[turn], sin=np.array([0.0, 1.0, 0.0, -1.0])[turn])


def inverse(inputs: Inputs, draw: Draw) -> Inputs:
    """q and k of `far`, rotated, and sin negated: the rotation back."""
    there = far(inputs, draw)
    q, k = (rotation.rotated(x, there.cos, there.sin, there.interleaved) for x in (there.q, there.k))
    return replace(there, q=q, k=k, sin=-there.sin)


Family = Callable[[Inputs, Draw], Inputs]
FAMILIES: dict[str, Family] = {each.__name__: each for each in (positions, far, free, outlier, quarters, inverse)}


def _turned(inputs: Inputs, start: int) -> Inputs:
    *rows, seqlen, pairs = inputs.cos.shape
    # Tangents of half the angles of one position: from 1/2 down by 13 halvings, in straight lines between them.
    halvings = 13 * np.arange(pairs)
    tangent = np.ldexp(1 - halvings % pairs / (2 * pairs), -(halvings // pairs) - 1)
    norm = 1 + tangent * tangent
    cos, sin = (1 - tangent * tangent) / norm, 2 * tangent / norm
    position = start + np.arange(seqlen)
    if rows:
        position = position + _APART * np.arange(rows[0])[:, None]
    x, y = np.ones((*position.shape, pairs)), np.zeros((*position.shape, pairs))
    for bit in range(int(position.max(initial=0)).bit_length()):
        odd = (position >> bit & 1 == 1)[..., None]
        x, y = np.where(odd, x * cos - y * sin, x), np.where(odd, y * cos + x * sin, y)
        cos, sin = cos * cos - sin * sin, 2 * cos * sin
    return replace(inputs, cos=x, sin=y)
