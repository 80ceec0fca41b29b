"""Dropout shows in a case whose V is the identity: out then holds the probabilities, each kept or dropped. So gradients
have a golden too: that of the mask which out shows."""

from __future__ import annotations

from collections.abc import Mapping
from math import sqrt

import numpy as np
from numpy.typing import NDArray

from xattn_conformance.array import Array
from xattn_conformance.result import Check
from xattn_conformance.tolerance.expected import Expected
from xattn_conformance.tolerance.limits import limit

# A probability this many standard deviations from 0 comes out as 0 only where it was dropped. Below it, one that was
# dropped is within the limits of one that was not.
_SURE = 4.0
# Keys that a kernel may draw its random numbers for at once; and how few pairs say nothing.
_TILES = (1, 16, 64)
_PAIRS = 64

Flags = NDArray[np.bool_]


def undropped(dropout_p: float, golden: Expected, got: Mapping[str, Array]) -> tuple[Array, Array, tuple[Check, ...]]:
    """out as it would be without dropout: the kept probabilities scaled back, the dropped ones as the golden has them.
    Then the factor of every probability that has a golden: 0, or 1 / (1 - dropout_p). The checks are how far the share
    of the dropped is from dropout_p, in standard deviations, and how far neighbours are dropped together."""
    out = got["out"].copy()
    rows = slice(None) if golden.rows is None else golden.rows
    picked = out[:, :, rows]
    sure = golden.value > _SURE * golden.sigma
    dropped = sure & (picked == 0)
    out[:, :, rows] = np.where(dropped, golden.value, picked * (1 - dropout_p))
    count = int(sure.sum())
    expected_spread = sqrt(dropout_p * (1 - dropout_p) / max(count, 1))
    value = abs(dropped.sum() / max(count, 1) - dropout_p) / expected_spread
    share = Check(name="dropout.share", value=float(value), limit=limit("share", count), count=count)
    apart, pairs = _dependence(dropped, sure, dropout_p)
    independence = Check(
        name="dropout.independence", value=apart, limit=limit("independence", pairs), count=max(pairs, 1)
    )
    return out, np.where(dropped, 0.0, 1 / (1 - dropout_p)), (share, independence)


def _dependence(dropped: Flags, sure: Flags, dropout_p: float) -> tuple[float, int]:
    """How far neighbours along batch rows, heads, queries or tiles of keys agree more or less often than by chance: the
    largest of these, in standard deviations, and its number of pairs."""
    agree = dropout_p**2 + (1 - dropout_p) ** 2
    worst, count = 0.0, 0
    for axis, step in ((0, 1), (1, 1), (2, 1), *((3, tile) for tile in _TILES)):
        first, second, first_sure, second_sure = (
            half for each in (dropped, sure) for half in _neighbours(each, axis, step)
        )
        both = first_sure & second_sure
        pairs = int(both.sum())
        if pairs < _PAIRS:
            continue
        spread = sqrt(agree * (1 - agree) / pairs)
        apart = abs(float((first == second)[both].mean()) - agree) / spread
        if apart > worst:
            worst, count = apart, pairs
    return float(f"{worst:.6g}"), count


def _neighbours(flags: Flags, axis: int, step: int) -> tuple[Flags, Flags]:
    """Blocks of so many along an axis, the even and the odd ones: no element is in two pairs."""
    blocks = flags.shape[axis] // (2 * step)
    whole = np.take(flags, range(2 * step * blocks), axis=axis)
    split = whole.reshape(*flags.shape[:axis], blocks, 2, step, *flags.shape[axis + 1 :])
    return np.take(split, 0, axis=axis + 1), np.take(split, 1, axis=axis + 1)
