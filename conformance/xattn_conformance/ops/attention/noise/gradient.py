"""Golden gradients, with the standard deviation of a right kernel's error for every element.

The same thinking as for out. With z the logits, L the lse, p_ij = exp(z_ij - L_i), g_i the gradient of out_i, l_i that
of lse_i, c'_ij the derivative of the softcap:

    dP_ij = g_i . v_j          delta_i = g_i . out_i - l_i        dZ_ij = p_ij (dP_ij - delta_i)      dS = dZ c'
    dq_i = scale sum_j dS_ij k_j    dk_j = scale sum_i dS_ij q_i    dv_j = sum_i p_ij g_i
    dbias = dZ, summed over what it was broadcast over    dsink = -sum_i p_sink,i delta_i

Under dropout a factor m_ij, 0 or 1 / (1 - dropout_p), stands before p_ij in out and dv, and before dP_ij.

A flash-style backward computes p again from the lse that the forward stored, takes delta from the out that was rounded,
rounds P and dS before they meet the other operand, and adds up in float32. So the noise of dZ_ij has a part of its own
(the score, dP, the rounding of dS) and two that a row has in common (lse and delta): sums over a row's keys add those
up coherently, sums over queries do not.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

import msgspec
import numpy as np

from xattn_conformance.array import Array
from xattn_conformance.ops.attention.noise.scores import Noise, noise
from xattn_conformance.ops.attention.oracle import Head, heads, scale
from xattn_conformance.ops.attention.problem import Problem
from xattn_conformance.tolerance.arithmetic import Arithmetic
from xattn_conformance.tolerance.expected import Expected
from xattn_conformance.tolerance.rounding import STEPS, coarse, products, rounding, square, truncation
from xattn_conformance.tolerance.units import SINGLE, UNITS, Unit, unit


@dataclass(frozen=True)
class _Scores:
    """The gradients of one head's logits, and their noise. R queries, K keys.

    g (R, headdim_v); dz (R, K): dZ. slope (R, K): c'.
    own (R, K): variance of dZ that an element has alone. rounded (R, K): the same of dS, with its rounding.
    delta (R,) and its variance delta_own (R,). row (R,): relative variance common to a row's probabilities.
    """

    g: Array
    dz: Array
    slope: Array
    own: Array
    rounded: Array
    delta: Array
    delta_own: Array
    row: Array

    @property
    def ds(self) -> Array:
        return self.dz * self.slope


class _Sum:
    """A gradient that heads are added up into, (batch, heads, rows, columns), and its variance."""

    def __init__(self, *shape: int) -> None:
        self.value, self.variance, self.common, self.slack = (np.zeros(shape) for _ in range(4))

    def add(
        self, at: tuple[int, ...], value: Array, own: Array, common: Array | float = 0.0, slack: Array | float = 0.0
    ) -> None:
        """own and common: the variance that each row of the gradient has alone, and what rows may have together.
        slack: as `Expected.slack`."""
        self.value[at] += value
        self.variance[at] += own + common
        self.common[at] += common
        self.slack[at] += slack

    def expected(self, at: Unit, arithmetic: Arithmetic) -> Expected:
        """Rounded to a format at the end. What nothing was added to is 0 exactly, by the contract."""
        variance = self.variance + rounding(at, square(self.value))
        if arithmetic.subnormals == "flushed":
            variance += SINGLE.normal**2
        common = np.divide(self.common, variance, out=np.zeros_like(variance), where=variance > 0)
        sigma = np.where(self.variance > 0, np.sqrt(variance), 0.0)
        return Expected(self.value, sigma, slack=self.slack, common=common)


def expected(
    problem: Problem, arithmetic: Arithmetic, share: slice | None = None, kept: Array | None = None
) -> dict[str, Expected]:
    """dq (batch, nheads, seqlen_q, headdim), dk and dv (batch, nheads_k, seqlen_k, headdim or headdim_v), dbias (the
    bias's shape, ones in front), dsinks (1, nheads, 1, 1): those in `problem.grads`. share: the keys of which dq is the
    sum; None is all of them. kept: dropout's factor of every probability, (batch, nheads, seqlen_q, seqlen_k)."""
    batch, nheads, seqlen_q, seqlen_k = problem.scores_shape
    nheads_k, headdim, headdim_v = problem.k.shape[2], problem.q.shape[3], problem.v.shape[3]
    dq = _Sum(batch, nheads, seqlen_q, headdim)
    dk, dv = _Sum(batch, nheads_k, seqlen_k, headdim), _Sum(batch, nheads_k, seqlen_k, headdim_v)
    dsinks = _Sum(1, nheads, 1, 1)
    if arithmetic.recomputed_scores == "input":
        arithmetic = msgspec.structs.replace(arithmetic, scores="input")
    bias_shape = () if problem.bias is None else problem.bias.shape
    dbias = _Sum(*(1,) * (4 - len(bias_shape)), *bias_shape)
    for head in heads(problem):
        with np.errstate(invalid="ignore", over="ignore"):
            at = noise(problem, head, arithmetic)
            factor: Array | float = 1.0
            if kept is not None:
                factor = kept[head.b, head.h]
                head = replace(head, out=(head.p * factor) @ head.v)
            scores = _scores(problem, head, at, arithmetic, factor)
            dq.add((head.b, head.h), *_dq(problem, _with_keys(head, share), scores, arithmetic))
            dk.add((head.b, head.kv), *_dk(problem, head, scores, arithmetic))
            dv.add((head.b, head.kv), *_dv(problem, head, at, scores, arithmetic, factor))
            dsinks.add((0, head.h, 0, 0), *_dsink(head, at, scores))
            if "bias" in problem.grads:
                _add_bias(dbias, head, scores)
    own = UNITS[problem.dtype]
    found = {name: total.expected(own, arithmetic) for name, total in {"dq": dq, "dk": dk, "dv": dv}.items()}
    found["dbias"] = dbias.expected(own, arithmetic)
    found["dsinks"] = dsinks.expected(SINGLE, arithmetic)
    return {f"d{wanted}": found[f"d{wanted}"] for wanted in problem.grads}


def _with_keys(head: Head, share: slice | None) -> Head:
    """The head with the other keys 0 and hidden."""
    if share is None:
        return head
    inside = np.zeros(len(head.k), dtype=bool)
    inside[share] = True
    return replace(head, k=np.where(inside[:, None], head.k, 0.0), visible=head.visible & inside)


def _scores(problem: Problem, head: Head, at: Noise, arithmetic: Arithmetic, factor: Array | float) -> _Scores:
    assert problem.dout is not None
    single = SINGLE.u**2
    g = problem.dout[head.b, head.rows, head.h]
    undropped = np.where(head.visible, g @ head.v.T, 0.0)
    dp = factor * undropped
    through_lse = np.zeros(len(g)) if problem.dlse is None else problem.dlse[head.b, head.h, head.rows]
    delta = (g * head.out).sum(axis=1) - through_lse
    p2, difference = square(head.p), dp - delta[:, None]
    slope = np.ones_like(dp) if problem.softcap is None else 1 - square(head.capped / problem.softcap)

    g2v2 = square(g) @ square(head.v).T
    dp_variance = products(g.shape[1], g2v2, square(undropped)) + coarse(problem.dtype, arithmetic) * g2v2
    dp_variance = dp_variance + square(truncation(g.shape[1], arithmetic) * (np.abs(g) @ np.abs(head.v).T))
    dp_variance = factor * factor * dp_variance
    dp_variance = dp_variance + rounding(unit(arithmetic.probability_gradients, problem.dtype), square(dp))
    # delta from the out of the forward: rounded, added up over the keys in float32, and made of rounded probabilities.
    probabilities = unit(arithmetic.probabilities, problem.dtype)
    terms = square(g * head.out).sum(axis=1)
    delta_own = (square(g) * rounding(UNITS[problem.dtype], square(head.out))).sum(axis=1)
    # Each column's sum has errors of its own; those of the denominator move all columns together. Where one key takes
    # nearly all of a row's weight, its dP and delta nearly cancel, and this is most of what is left of their errors.
    over_keys = (p2 * factor * factor * g2v2).sum(axis=1) + terms + square((g * head.out).sum(axis=1))
    delta_own += single / 3 * head.visible.sum(axis=1) * over_keys
    if arithmetic.partial_outputs == "input":
        delta_own += 2 * UNITS[problem.dtype].u ** 2 / 3 * terms
    delta_own += products(g.shape[1], terms, square(delta))
    # A rounded component of dout moves dP of all keys together, as an error of delta would.
    delta_own += coarse(problem.dtype, arithmetic) / 2 * terms
    delta_own += single * STEPS * square(through_lse)
    delta_own += probabilities.u**2 / 3 * (p2 * square(dp)).sum(axis=1)
    delta_own += (p2 * (at.p + at.exp) * square(dp - (g * head.out).sum(axis=1, keepdims=True))).sum(axis=1)

    own = p2 * (square(difference) * (at.p + at.exp + single * STEPS) + dp_variance)
    ds_rounding = unit(arithmetic.score_gradients, problem.dtype)
    rounded = square(slope) * own
    if problem.softcap is not None:
        tanh2 = 1 - slope
        tanh = 4.0**-arithmetic.tanh_bits
        slope_variance = 4 * tanh2 * (square(slope / problem.softcap) * at.scaled + tanh * tanh2) + single * STEPS
        rounded = rounded + square(head.p * difference) * slope_variance
    rounded = rounded + np.where(head.visible, rounding(ds_rounding, square(head.p * difference * slope)), 0.0)
    return _Scores(g, head.p * difference, slope, own, rounded, delta, delta_own, at.row + at.exp)


def _dq(problem: Problem, head: Head, scores: _Scores, arithmetic: Arithmetic) -> tuple[Array, Array, Array, Array]:
    """(R, headdim). The errors that a row has in common come through the sum as one."""
    factor2, k2 = scale(problem) ** 2, square(head.k)
    value = scale(problem) * (scores.ds @ head.k)
    common = square((head.p * scores.slope) @ head.k) * scores.delta_own[:, None]
    common += square(scores.ds @ head.k) * scores.row[:, None]
    # All but the rounding of dS is the same for rows that ask the same.
    alike = _alike(head) * factor2 * ((square(scores.slope) * scores.own) @ k2 + common)
    variance = factor2 * (scores.rounded @ k2 + common) - alike
    keys = head.visible.sum(axis=1, keepdims=True)
    squares = factor2 * (square(scores.ds) @ k2)
    sums = SINGLE.u**2 / 3 * keys * (squares + square(value)) + keys * SINGLE.smallest**2
    slack = truncation(keys, arithmetic) * abs(scale(problem)) * (np.abs(scores.ds) @ np.abs(head.k))
    return value, variance + sums + coarse(problem.dtype, arithmetic) * squares, alike, slack


def _alike(head: Head) -> float:
    """The share of a variance that rows have in common because some ask the same: equal queries that see the same keys
    have the same probabilities and the same errors in them, whatever comes in for each. 0 where no two do, 1 where all.

    A mean of n rows, m of them alike, varies as that of n^2 / sum(m^2) rows would.
    """
    seen = np.where(head.visible, head.added, np.nan)
    asked = Counter(q.tobytes() + row.tobytes() for q, row in zip(head.q, seen, strict=True))
    n = len(head.q)
    return (sum(m * m for m in asked.values()) / n - 1) / (n - 1) if n > 1 else 0.0


def _dk(problem: Problem, head: Head, scores: _Scores, arithmetic: Arithmetic) -> tuple[Array, Array, Array, Array]:
    """(K, headdim). A query's delta and lse are off for all keys alike."""
    factor2, q2 = scale(problem) ** 2, square(head.q)
    value = scale(problem) * (scores.ds.T @ head.q)
    common = square(head.p * scores.slope) * scores.delta_own[:, None] + square(scores.ds) * scores.row[:, None]
    queries = head.visible.sum(axis=0)[:, None]
    squares = factor2 * (square(scores.ds).T @ q2)
    own = factor2 * (scores.rounded.T @ q2) + _summed(problem, value, squares, queries, arithmetic)
    slack = truncation(queries, arithmetic) * abs(scale(problem)) * (np.abs(scores.ds).T @ np.abs(head.q))
    return value, own, factor2 * (common.T @ q2), slack


def _dv(
    problem: Problem, head: Head, at: Noise, scores: _Scores, arithmetic: Arithmetic, factor: Array | float
) -> tuple[Array, Array, Array, Array]:
    """(K, headdim_v)."""
    p = head.p * factor
    probabilities = unit(arithmetic.probabilities, problem.dtype)
    g2, p2 = square(scores.g), square(p)
    value = p.T @ scores.g
    relative = p2 * (at.p + at.exp) + np.where(head.visible, rounding(probabilities, p2), 0.0)
    queries = head.visible.sum(axis=0)[:, None]
    own = relative.T @ g2 + _summed(problem, value, p2.T @ g2, queries, arithmetic)
    slack = truncation(queries, arithmetic) * (p.T @ np.abs(scores.g))
    return value, own, (p2 * scores.row[:, None]).T @ g2, slack


def _summed(problem: Problem, value: Array, squares: Array, count: Array, arithmetic: Arithmetic) -> Array:
    """Variance of adding up `count` terms in float32, and of rounding a head's share before the group is added."""
    variance = SINGLE.u**2 / 3 * count * (squares + square(value)) + count * SINGLE.smallest**2
    variance = variance + coarse(problem.dtype, arithmetic) * squares
    if arithmetic.head_gradients == "input":
        variance = variance + np.where(count > 0, rounding(UNITS[problem.dtype], square(value)), 0.0)
    return variance


def _dsink(head: Head, at: Noise, scores: _Scores) -> tuple[Array, Array]:
    """Scalars."""
    value = -(head.p_sink * scores.delta).sum()
    relative = at.sink + at.exp + scores.row + SINGLE.u**2 * len(scores.row)
    return value, (square(head.p_sink) * (scores.delta_own + square(scores.delta) * relative)).sum()


def _add_bias(total: _Sum, head: Head, scores: _Scores) -> None:
    """dZ, summed over the axes on which the bias has one element."""
    batch, nheads, seqlen_q, seqlen_k = total.value.shape
    at = (head.b if batch > 1 else 0, head.h if nheads > 1 else 0)
    # Kernels that write dZ out round it as they round dS.
    own = np.where(head.visible, np.maximum(scores.own, scores.rounded), 0.0)
    value, common = scores.dz, square(head.p) * scores.delta_own[:, None] + square(scores.dz) * scores.row[:, None]
    if seqlen_k == 1 and value.shape[1] != 1:
        value, own = value.sum(axis=1, keepdims=True), own.sum(axis=1, keepdims=True)
        common = square(head.p.sum(axis=1)) * scores.delta_own + square(value[:, 0]) * scores.row
        common = common[:, None]
    if seqlen_q == 1 and value.shape[0] != 1:
        value, own, common = (x.sum(axis=0, keepdims=True) for x in (value, own, common))
    total.add(at, value, own, common)
