"""Where the noise starts: the scores of one head, and what they do to its probabilities.

What is common to a whole row, such as the error of its lse, is kept apart from what is not.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from xattn_conformance.array import Array
from xattn_conformance.ops.attention.oracle import Head, scale
from xattn_conformance.ops.attention.problem import Problem
from xattn_conformance.tolerance.arithmetic import Arithmetic
from xattn_conformance.tolerance.rounding import STEPS, coarse, products, rounding, square, truncation
from xattn_conformance.tolerance.units import SINGLE, UNITS

# Beside it float64 too forgets a score.
_ABSORBING = 2.0**100


@dataclass(frozen=True)
class Noise:
    """Variances for one head. R queries, K keys.

    scaled (R, K): of the scaled scores. p (R, K): relative, of the probabilities, without what a row has in common.
    row (R,): relative, common to the row: its lse. sink (R,): relative, of the sink's share.
    exp: the square of the exponential's own relative error, which is in none of the others.
    """

    scaled: Array
    p: Array
    row: Array
    sink: Array
    exp: float


def noise(problem: Problem, head: Head, arithmetic: Arithmetic) -> Noise:
    """The noise of one head's scores, under the declared arithmetic."""
    factor, at = scale(problem), UNITS[problem.dtype]
    own = SINGLE.u**2
    squares = factor**2 * (square(head.q) @ square(head.k).T)
    scaled = products(head.q.shape[1], squares, square(head.scaled)) + own * STEPS * square(head.scaled)
    scaled = scaled + square(truncation(head.q.shape[1], arithmetic) * head.scaled)
    scaled = scaled + coarse(problem.dtype, arithmetic) * squares
    if arithmetic.scaled_q:
        scaled = scaled + at.u**2 / 3 * squares
    if arithmetic.scores == "input":
        scaled = scaled + rounding(at, square(head.scaled))
    logits = scaled
    if problem.softcap is not None:
        slope = 1 - square(head.capped / problem.softcap)
        # tanh made from exp is right to a part of 1, not of a small result.
        logits = square(slope) * scaled + 4.0**-arithmetic.tanh_bits * square(head.capped) + own * problem.softcap**2
    # What is added may be so large that nothing of the score is left, and nothing to be rounded.
    absorbed = np.abs(head.added) > _ABSORBING
    logits = logits + own * STEPS * np.where(absorbed, 0.0, square(head.added) + square(head.logits))
    if arithmetic.scores == "input" and (problem.softcap is not None or head.added.any()):
        logits = logits + rounding(at, square(head.logits))
    p = np.where(head.visible, logits + own * STEPS, 0.0)

    sinks = np.zeros_like(head.lse)
    if problem.sinks is not None:
        sinks += own * STEPS * (problem.sinks[head.h] ** 2 + 1)
    count = head.visible.sum(axis=1)
    finite = np.where(np.isfinite(head.lse), head.lse, 0.0)
    row = (square(head.p) * p).sum(axis=1) + square(head.p_sink) * sinks
    row += own / 3 * count + own * STEPS * (square(finite) + 1)
    return Noise(scaled, p, row, sinks, 4.0**-arithmetic.exp_bits)
