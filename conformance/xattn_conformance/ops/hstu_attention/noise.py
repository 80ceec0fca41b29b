"""The noise of hstu_attention: scores and sums in float32, SiLU made of an exponential, weights and gradients of scores
rounded where the arithmetic says so, one rounding of each result.

With s a score, w = silu(s) / norm its weight, g the gradient of out: dv = w^T g, ds = (g v^T) silu'(s) / norm,
dq = scale ds k, dk = scale ds^T q. An exponential that is off by e to one side moves all weights of a row the same way,
which no sum averages out: that part is a slack.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from xattn_conformance.array import Array
from xattn_conformance.ops.hstu_attention.oracle import Answer, Head, answer, heads
from xattn_conformance.ops.hstu_attention.problem import Hstu
from xattn_conformance.tolerance.arithmetic import Arithmetic
from xattn_conformance.tolerance.expected import Expected
from xattn_conformance.tolerance.rounding import STEPS, coarse, products, rounding, square, truncation
from xattn_conformance.tolerance.units import SINGLE, UNITS, unit

# exp(88) is the largest float32: SiLU of less than -88 comes out as 0.
_VANISHED = 2e-37
_OWN = SINGLE.u**2


class _Result:
    """A result, (1, nheads, total, columns), its variance and its slack."""

    def __init__(self, *shape: int) -> None:
        self.value, self.variance, self.slack = (np.zeros((1, *shape)) for _ in range(3))

    def set(self, at: Head, value: Array, variance: Array, slack: Array) -> None:
        place = 0, at.h, at.rows
        self.value[place], self.variance[place], self.slack[place] = value, variance, slack

    def expected(self) -> Expected:
        return Expected(self.value, np.sqrt(self.variance), slack=self.slack)


@dataclass(frozen=True)
class _Scores:
    """Variances, (n, n): of the scores; of the weights, before and after their rounding; of the gradients of scores
    likewise. bent: how far an exponential off to one side moves a weight, and in `ds_bent` a gradient of a score."""

    w: Array
    w_rounded: Array
    ds_rounded: Array
    bent: Array
    ds_bent: Array


def expected(problem: Hstu, arithmetic: Arithmetic) -> dict[str, Expected]:
    """out and, where a gradient comes in, dq, dk, dv by name."""
    total, nheads, headdim = problem.q.shape
    columns = {"out": problem.v.shape[2]}
    if problem.dout is not None:
        columns |= {"dq": headdim, "dk": headdim, "dv": problem.v.shape[2]}
    found = {name: _Result(nheads, total, width) for name, width in columns.items()}
    for at in heads(problem):
        with np.errstate(over="ignore", under="ignore"):
            right = answer(problem, at)
            scores = _scores(problem, at, right, arithmetic)
            for name, parts in _parts(problem, at, right, scores, arithmetic).items():
                found[name].set(at, *parts)
    return {name: result.expected() for name, result in found.items()}


def _scores(problem: Hstu, at: Head, right: Answer, arithmetic: Arithmetic) -> _Scores:
    own, headdim = UNITS[problem.dtype], at.q.shape[1]
    squares = problem.scale**2 * (square(at.q) @ square(at.k).T)
    s = products(headdim, squares, square(at.s)) + _OWN * STEPS * square(at.s)
    s = s + square(truncation(headdim, arithmetic) * at.s) + coarse(problem.dtype, arithmetic) * squares
    if arithmetic.scaled_q:
        s = s + own.u**2 / 3 * squares
    if "input" in (arithmetic.scores, arithmetic.recomputed_scores if problem.dout is not None else "float32"):
        s = s + rounding(own, square(at.s))
    exp, sigmoid, silu, slope = 2.0**-arithmetic.exp_bits, at.sigmoid, at.silu, at.slope
    # 1 / (1 + exp(-s)) has the error of exp as far as that is a part of the sum.
    w = square(slope) * s + square(silu) * (square((1 - sigmoid) * exp) + _OWN * STEPS) + _VANISHED**2
    w = np.where(at.seen, w / problem.norm**2, 0.0)
    probabilities = unit(arithmetic.probabilities, problem.dtype)
    w_rounded = w + np.where(at.seen, rounding(probabilities, square(right.w)), 0.0)
    bent = np.where(at.seen, np.abs(silu) * (1 - sigmoid) * exp / problem.norm, 0.0)
    if at.g is None:
        return _Scores(w, w_rounded, np.zeros_like(w), bent, np.zeros_like(w))
    dw = at.g @ at.v.T
    dw_squares = square(at.g) @ square(at.v).T
    dw_variance = products(at.v.shape[1], dw_squares, square(dw)) + coarse(problem.dtype, arithmetic) * dw_squares
    dw_variance = dw_variance + square(truncation(at.v.shape[1], arithmetic) * (np.abs(at.g) @ np.abs(at.v).T))
    dw_variance = dw_variance + rounding(unit(arithmetic.probability_gradients, problem.dtype), square(dw))
    # slope = sigmoid (1 + s (1 - sigmoid)), by its derivatives along s and along the exponential.
    along_s = sigmoid * (1 - sigmoid) * (2 + at.s * (1 - 2 * sigmoid))
    along_exp = sigmoid * (1 - sigmoid) * (1 + at.s * (1 - 2 * sigmoid))
    steps = square(sigmoid) * (1 + square(at.s))
    slope_variance = square(along_s) * s + square(along_exp * exp) + _OWN * STEPS * steps + _VANISHED**2
    ds = (square(slope) * dw_variance + square(dw) * slope_variance) / problem.norm**2 + _OWN * STEPS * square(right.ds)
    ds = ds + rounding(unit(arithmetic.score_gradients, problem.dtype), square(right.ds))
    ds_bent = np.abs(dw * along_exp) * exp / problem.norm
    return _Scores(w, w_rounded, np.where(at.seen, ds, 0.0), bent, np.where(at.seen, ds_bent, 0.0))


def _parts(
    problem: Hstu, at: Head, right: Answer, scores: _Scores, arithmetic: Arithmetic
) -> Mapping[str, tuple[Array, Array, Array]]:
    """Value, variance and slack of each result of a head."""
    keys = at.seen.sum(axis=1, keepdims=True)
    v2 = square(at.v)
    spread = square(right.w) @ v2
    variance = scores.w_rounded @ v2 + _summed(problem, right.out, spread, keys, arithmetic)
    if arithmetic.partial_outputs == "input":
        variance += UNITS[problem.dtype].u ** 2 / 3 * (spread + 2 * square(right.out))
    slack = (scores.bent + truncation(keys, arithmetic) * np.abs(right.w)) @ np.abs(at.v)
    found = {"out": (right.out, variance, slack)}
    if at.g is None:
        return found
    scale, queries = abs(problem.scale), at.seen.sum(axis=0)[:, None]
    for name, over, other, count in (("dq", scores.ds_rounded, at.k, keys), ("dk", scores.ds_rounded.T, at.q, queries)):
        ds, bent = (right.ds, scores.ds_bent) if name == "dq" else (right.ds.T, scores.ds_bent.T)
        squares = scale**2 * (square(ds) @ square(other))
        variance = scale**2 * (over @ square(other))
        variance = variance + _summed(problem, right.grads[name], squares, count, arithmetic)
        slack = scale * ((bent + truncation(count, arithmetic) * np.abs(ds)) @ np.abs(other))
        found[name] = right.grads[name], variance, slack
    g2 = square(at.g)
    variance = scores.w_rounded.T @ g2
    variance += _summed(problem, right.grads["dv"], square(right.w).T @ g2, queries, arithmetic)
    slack = (scores.bent.T + truncation(queries, arithmetic) * np.abs(right.w).T) @ np.abs(at.g)
    found["dv"] = right.grads["dv"], variance, slack
    return found


def _summed(problem: Hstu, value: Array, squares: Array, count: Array, arithmetic: Arithmetic) -> Array:
    """Variance of adding up `count` products in float32, of a factor or two behind the sum, and of one rounding."""
    variance = _OWN / 3 * count * (squares + square(value)) + count * SINGLE.smallest**2
    variance = variance + _OWN * STEPS * square(value) + coarse(problem.dtype, arithmetic) * squares
    if arithmetic.subnormals == "flushed":
        variance = variance + SINGLE.normal**2
    return variance + rounding(UNITS[problem.dtype], square(value))
