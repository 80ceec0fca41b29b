"""Where the noise starts: the scores of one head, and what they do to its probabilities.

Every rounding is taken as an independent error, uniform within half a unit in the last place: a variance of u^2 / 3
times the square of what is rounded. Sums of n products in float32 are a random walk. What is common to a whole row,
such as the error of its lse, is kept apart from what is not.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from xattn_conformance.golden.oracle import Head, scale
from xattn_conformance.problem import Array, Problem
from xattn_conformance.tolerance.arithmetic import Arithmetic
from xattn_conformance.tolerance.units import SINGLE, TF32, UNITS, Unit

# Roundings of a number on its way through scaling, adding, subtracting the maximum and changing the base of exp.
STEPS = 4


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


def square(x: Array) -> Array:
    return x * x


def rounding(at: Unit, size: Array) -> Array:
    """Variance of rounding numbers whose squares are `size`."""
    return at.u**2 / 3 * size + at.smallest**2 / 12


def products(n: int, squares: Array, total: Array) -> Array:
    """Variance of a sum of n products in float32. squares: the sum of their squares; total: the square of the sum.

    Products of either sign make a random walk; those of one sign make partial sums as large as the total, a third of
    its square on average, n / 4 of them in four lanes."""
    return SINGLE.u**2 / 3 * (n * squares + (STEPS + n / 12) * total) + n * SINGLE.smallest**2 / 12


def truncation(n: int | Array, arithmetic: Arithmetic) -> Array:
    """How far below its size a sum of n products may come out, relative to the sum of their sizes. Eight products are
    taken off at a time, of a few bits below float32's last each; 9.4e-7 was seen at n = 192 on an H200."""
    bound = SINGLE.u * (np.asarray(n) / 8 + STEPS)
    return bound if arithmetic.sums == "truncated" else np.zeros_like(bound)


def coarse(problem: Problem, arithmetic: Arithmetic) -> float:
    """Relative variance of a product whose operands are both rounded to TF32."""
    return 2 * TF32**2 / 3 if arithmetic.products == "tf32" and problem.dtype == "float32" else 0.0


def noise(problem: Problem, head: Head, arithmetic: Arithmetic) -> Noise:
    """The noise of one head's scores, under the declared arithmetic."""
    factor, at = scale(problem), UNITS[problem.dtype]
    own = SINGLE.u**2
    squares = factor**2 * (square(head.q) @ square(head.k).T)
    scaled = products(head.q.shape[1], squares, square(head.scaled)) + own * STEPS * square(head.scaled)
    scaled = scaled + square(truncation(head.q.shape[1], arithmetic) * head.scaled)
    scaled = scaled + coarse(problem, arithmetic) * squares
    if arithmetic.scaled_q:
        scaled = scaled + at.u**2 / 3 * squares
    if arithmetic.scores == "input":
        scaled = scaled + rounding(at, square(head.scaled))
    logits = scaled
    if problem.softcap is not None:
        slope = 1 - square(head.capped / problem.softcap)
        # tanh made from exp is right to a part of 1, not of a small result.
        logits = square(slope) * scaled + 4.0**-arithmetic.tanh_bits * square(head.capped) + own * problem.softcap**2
    logits = logits + own * STEPS * (square(head.added) + square(head.logits))
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
