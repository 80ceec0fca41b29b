"""Golden out and lse, with the standard deviation of a right kernel's error for every element."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from xattn_conformance.array import Array
from xattn_conformance.ops.attention.noise.scores import Noise, noise
from xattn_conformance.ops.attention.oracle import Head, heads, scale
from xattn_conformance.ops.attention.problem import Problem
from xattn_conformance.tolerance.arithmetic import Arithmetic
from xattn_conformance.tolerance.expected import Expected
from xattn_conformance.tolerance.rounding import coarse, rounding, square, truncation
from xattn_conformance.tolerance.units import SINGLE, TF32, UNITS, unit


def expected(problem: Problem, arithmetic: Arithmetic, rows: NDArray[np.int64] | None = None) -> dict[str, Expected]:
    """out (batch, nheads, R, headdim_v) and lse (batch, nheads, R, 1); `rows` picks queries, None is all."""
    batch, nheads, seqlen_q, _ = problem.scores_shape
    count = seqlen_q if rows is None else len(rows)
    shape = (batch, nheads, count, problem.v.shape[3])
    out, out_sigma, out_slack = (np.zeros(shape) for _ in range(3))
    lse, lse_sigma, lse_slack, lse_common = (np.zeros((*shape[:3], 1)) for _ in range(4))
    for head in heads(problem, rows):
        at = head.b, head.h
        with np.errstate(invalid="ignore", over="ignore"):
            found = noise(problem, head, arithmetic)
            out[at], lse[at][:, 0] = head.out, head.lse
            out_sigma[at] = np.sqrt(out_variance(problem, head, found, arithmetic))
            variance, common = lse_variance(problem, head, found, arithmetic)
            lse_sigma[at][:, 0] = np.sqrt(variance)
            lse_common[at][:, 0] = np.divide(common, variance, out=np.zeros_like(variance), where=variance > 0)
            out_slack[at] = truncation(head.visible.sum(axis=1), arithmetic)[:, None] * (
                head.p @ np.abs(_finite(head.v))
            )
            sizes = (head.p * np.abs(head.scaled)).sum(axis=1)
            # A probability is its own exponential times that of its tile's maximum.
            lse_slack[at][:, 0] = 2 * 2.0**-arithmetic.exp_bits + truncation(head.q.shape[1], arithmetic) * sizes
    return {
        "out": Expected(out, out_sigma, rows, slack=out_slack),
        "lse": Expected(lse, lse_sigma, rows, slack=lse_slack, common=lse_common),
    }


def _finite(v: Array) -> Array:
    """A NaN that some query sees is in no sum of those that do not."""
    return np.where(np.isfinite(v), v, 0.0)


def out_variance(problem: Problem, head: Head, at: Noise, arithmetic: Arithmetic) -> Array:
    """(R, headdim_v). 0 for a dead row: that is a rule, not a measurement."""
    own = UNITS[problem.dtype]
    probabilities = unit(arithmetic.probabilities, problem.dtype)
    v, g = _finite(head.v), head.out
    p2, v2, g2 = square(head.p), square(v), square(g)
    spread = p2 @ v2  # sum_j p_j^2 v_j^2
    # sum_j p_j^2 (v_j - g)^2 var_j, multiplied out; rounding of the differences can leave it below 0.
    weights = p2 * (at.p + at.exp)
    scores = weights @ v2 - 2 * g * (weights @ v) + g2 * weights.sum(axis=1, keepdims=True)
    variance = rounding(own, g2) + probabilities.u**2 / 3 * spread + np.maximum(scores, 0.0)
    variance += (square(head.p_sink) * (at.sink + at.exp))[:, None] * g2
    keys = head.visible.sum(axis=1, keepdims=True)
    variance += SINGLE.u**2 / 3 * (keys * (spread + g2)) + keys * SINGLE.smallest**2 / 12
    # A probability below the format's range is rounded by an absolute amount, of the largest of its row.
    size = head.visible.astype(float) @ v2
    # Of the largest of its row, which may be the sink.
    largest = square(np.maximum(head.p.max(axis=1, initial=0.0), head.p_sink))[:, None]
    variance += probabilities.smallest**2 / 12 * size * largest
    variance += coarse(problem.dtype, arithmetic) * spread
    if coarse(problem.dtype, arithmetic) > 0:
        # TF32 has float32's exponents and fewer bits: its smallest number is 2^-136.
        variance += (2.0**-136) ** 2 / 12 * (size * largest + p2.sum(axis=1, keepdims=True))
    if arithmetic.partial_outputs == "input":
        variance += own.u**2 / 3 * (spread + 2 * g2)
    if rounded_q := _rounded_q(problem, arithmetic):
        variance += rounded_q * _coherent_q(problem, head)
    if arithmetic.subnormals == "flushed":
        variance += SINGLE.normal**2
    alive = np.any(head.visible, axis=1, keepdims=True)
    return np.where(alive, variance, 0.0)


def _rounded_q(problem: Problem, arithmetic: Arithmetic) -> float:
    """Relative variance of the components of q as they meet K, beyond the inputs' own rounding."""
    scaled = UNITS[problem.dtype].u ** 2 / 3 if arithmetic.scaled_q else 0.0
    return scaled + (TF32**2 / 3 if arithmetic.products == "tf32" and problem.dtype == "float32" else 0.0)


def _coherent_q(problem: Problem, head: Head) -> Array:
    """A rounded component of q moves every score of its row together: through the Jacobian of out by q, (R, headdim_v).

    d out / d q_e = scale sum_j p_j (v_j - g) k_je."""
    total = np.zeros_like(head.out)
    for e in range(head.q.shape[1]):
        weights = head.p * head.k[:, e]
        total += square(head.q[:, e, None] * (weights @ head.v - head.out * weights.sum(axis=1, keepdims=True)))
    return scale(problem) ** 2 * total


def lse_variance(problem: Problem, head: Head, at: Noise, arithmetic: Arithmetic) -> tuple[Array, Array]:
    """(R,) each: the variance, and the part of it that rows with like queries have in common. 0 for a row with neither
    key nor sink, whose -inf is a rule. What a declaration bounds for all alike, the error of exp and what truncated
    sums lose, is no noise: see `Expected.slack`."""
    variance, common = at.row, np.zeros_like(at.row)
    if rounded_q := _rounded_q(problem, arithmetic):
        # d lse / d q_e = scale sum_j p_j k_je
        common = rounded_q * scale(problem) ** 2 * (square(head.q) * square(head.p @ head.k)).sum(axis=1)
    if arithmetic.scores == "input":
        # Equal scores are rounded alike, and then their sum is off by as much as each.
        variance = variance + rounding(UNITS[problem.dtype], square((head.p * np.abs(head.scaled)).sum(axis=1)))
    return np.where(head.lse == -np.inf, 0.0, variance + common), common
