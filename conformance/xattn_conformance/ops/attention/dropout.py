"""Dropout shows in a case whose V is the identity: out then holds the probabilities, each kept or dropped."""

from __future__ import annotations

from collections.abc import Mapping
from math import sqrt

import numpy as np

from xattn_conformance.array import Array
from xattn_conformance.result import Check
from xattn_conformance.tolerance.expected import Expected
from xattn_conformance.tolerance.limits import limit

# A probability this many standard deviations from 0 comes out as 0 only where it was dropped. Below it, one that was
# dropped is within the limits of one that was not.
_SURE = 4.0


def undropped(
    dropout_p: float, expected: Mapping[str, Expected], got: Mapping[str, Array]
) -> tuple[dict[str, Array], tuple[Check, ...]]:
    """out as it would be without dropout: the kept probabilities scaled back, the dropped ones as the golden has them.
    The check is how far the share of the dropped is from dropout_p, in standard deviations."""
    golden = expected["out"]
    out = got["out"].copy()
    rows = slice(None) if golden.rows is None else golden.rows
    picked = out[:, :, rows]
    sure = golden.value > _SURE * golden.sigma
    dropped = sure & (picked == 0)
    out[:, :, rows] = np.where(dropped, golden.value, picked * (1 - dropout_p))
    count = int(sure.sum())
    expected_spread = sqrt(dropout_p * (1 - dropout_p) / max(count, 1))
    value = abs(dropped.sum() / max(count, 1) - dropout_p) / expected_spread
    check = Check(name="dropout.share", value=float(value), limit=limit("share", count), count=count)
    return {**got, "out": out}, (check,)
