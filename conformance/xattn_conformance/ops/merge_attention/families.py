"""The families of inputs. Each takes outs (parts, batch, seqlen, nheads, headdim) and lses (parts, batch, nheads,
seqlen), which come as normal numbers, unrounded, and may change both."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from xattn_conformance.array import Array
from xattn_conformance.inputs.draw import Draw

Inputs = tuple[Array, Array]
Bools = NDArray[np.bool_]

# One stream of words for each thing that is drawn. Frozen: a number that changes is another suite.
STREAMS = {
    "lses": 1,
    "outs": 2,
    "hidden": 5,
    "dead": 6,
    "dout": 7,
    "dlse": 8,
    "spoilt": 10,
    "kept": 15,
    "signs": 17,
}


def normal(outs: Array, lses: Array, draw: Draw) -> Inputs:
    """Parts of like weight."""
    return outs, lses


def peaked(outs: Array, lses: Array, draw: Draw) -> Inputs:
    """The lses are 20 times as far apart: in most rows one part has nearly all the weight, now one, now another."""
    return outs, 20 * lses


def shifted(outs: Array, lses: Array, draw: Draw) -> Inputs:
    """300 is added to the lses of a row, or taken off: their exponentials do not fit into float32."""
    return outs, lses + 300 * draw.signs("signs", lses.shape[1:])


def unseen(outs: Array, lses: Array, draw: Draw) -> Inputs:
    """In every third place the query saw no key of the part: its lse is -inf, its out NaN. Of each row some part is
    left."""
    hidden = draw.integers("hidden", lses.shape) % 3 == 0
    kept = np.arange(len(lses)).reshape(-1, 1, 1, 1) == draw.integers("kept", lses.shape[1:]) % len(lses)
    return _hide(outs, lses, hidden & ~kept)


def dead(outs: Array, lses: Array, draw: Draw) -> Inputs:
    """As `unseen`, and in every fourth row the query saw no key of any part."""
    hidden = draw.integers("hidden", lses.shape) % 3 == 0
    return _hide(outs, lses, hidden | (draw.integers("dead", lses.shape[1:]) % 4 == 0))


def spoilt(outs: Array, lses: Array, draw: Draw) -> Inputs:
    """In the first head, every eighth lse is NaN or +inf."""
    struck = draw.integers("spoilt", lses.shape) % 8
    struck[:, :, 1:] = 7
    return outs, np.where(struck == 0, np.nan, np.where(struck == 1, np.inf, lses))


Family = Callable[[Array, Array, Draw], Inputs]
FAMILIES: dict[str, Family] = {each.__name__: each for each in (normal, peaked, shifted, unseen, dead, spoilt)}


def _hide(outs: Array, lses: Array, hidden: Bools) -> Inputs:
    at_outs = np.swapaxes(hidden, -1, -2)[..., None]
    return np.where(at_outs, np.nan, outs), np.where(hidden, -np.inf, lses)
