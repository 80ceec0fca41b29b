"""The families of inputs. Each takes q and k, (total, nheads, headdim), which come as normal numbers, unrounded."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from xattn_conformance.array import Array

# One stream of words for each thing that is drawn. Frozen: a number that changes is another suite.
STREAMS = {"q": 0, "k": 1, "v": 2, "dout": 3}

Inputs = tuple[Array, Array]


def normal(q: Array, k: Array) -> Inputs:
    """Scores around 0, where SiLU bends."""
    return q, k


def peaked(q: Array, k: Array) -> Inputs:
    """Scores eight times as large: SiLU is nearly the score, or nearly 0."""
    return 8 * q, k


def positive(q: Array, k: Array) -> Inputs:
    """No score below 0: weights of one sign, whose sums grow."""
    return np.abs(q), np.abs(k)


def negative(q: Array, k: Array) -> Inputs:
    """No score above 0: weights that are little below 0, and the less so the larger the score."""
    return np.abs(q), -np.abs(k)


Family = Callable[[Array, Array], Inputs]
FAMILIES: dict[str, Family] = {each.__name__: each for each in (normal, peaked, positive, negative)}
