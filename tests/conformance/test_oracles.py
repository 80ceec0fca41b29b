"""Two oracles that share no code agree on every small case, and both with 50 digits where exponentials are awkward."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import mpmath
import numpy as np
import pytest
from support import extended
from xattn_conformance.array import Array
from xattn_conformance.case import DTYPES, Case
from xattn_conformance.ops.attention import oracle, rowwise
from xattn_conformance.ops.attention.cases import knobs, load
from xattn_conformance.ops.attention.inputs import make
from xattn_conformance.ops.attention.problem import Problem

RELATIVE = 1e-12
Oracle = Callable[[Problem], tuple[Array, Array]]


def small() -> list[Case]:
    """Every forward case of up to 65 queries and keys, in one dtype each, by turns."""
    every = [*load(), *(knob.on for knob in knobs())]
    cases = [case for case in every if case.dtype == DTYPES[0] and not case.grads]
    cases = [case for case in cases if max(case.shape["seqlen_q"], case.shape["seqlen_k"]) <= 65]
    by_id = {case.id: case for case in every}
    ids = [case.id.replace(f"/{case.dtype}/", f"/{DTYPES[n % 3]}/") for n, case in enumerate(cases)]
    return [by_id[each] for each in ids]


def assert_agree(got: tuple[Array, Array], want: tuple[Array, Array]) -> None:
    """out relative to the largest of its row, lse relative to itself; what is not finite is the same."""
    for name, one, other in zip(("out", "lse"), got, want, strict=True):
        assert one.shape == other.shape, name
        size = np.abs(np.where(np.isfinite(other), other, 0.0))
        if name == "out":
            size = size.max(axis=-1, keepdims=True, initial=0.0)
        with np.errstate(invalid="ignore"):
            right = (np.abs(one - other) <= RELATIVE * size) | (one == other) | (np.isnan(one) & np.isnan(other))
        assert right.all(), f"{name}{np.argwhere(~right)[0].tolist()}: {one[~right][0]!r} and {other[~right][0]!r}"


# In parts, so that they can run side by side.
@pytest.mark.parametrize("part", [0, 3, *extended(1, 2, 4, 5, 6, 7)])
def test_the_oracles_agree_on_every_small_case(part: int) -> None:
    cases = small()[part::8]
    assert len(cases) > 20
    for case in cases:
        problem = make(case)
        try:
            assert_agree(oracle.forward(problem), rowwise.forward(problem))
        except AssertionError as error:
            raise AssertionError(f"{case.id}: {error}") from error


def test_chosen_rows_are_those_of_the_whole() -> None:
    for case in small()[::9]:
        problem = make(case)
        rows = np.arange(problem.q.shape[1])[::3]
        out, lse = oracle.forward(problem)
        assert_agree(oracle.forward(problem, rows), (out[:, rows], lse[:, :, rows]))


@pytest.mark.parametrize("options", [{"causal": True}, {"window": (0, 0)}], ids=["among others", "alone"])
@pytest.mark.parametrize("name", ["k", "v"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_the_oracles_agree_on_what_is_seen_and_not_finite(name: str, value: float, options: dict[str, Any]) -> None:
    # q is positive, so that infinite keys have infinite logits and no NaN comes from inf - inf within one score.
    rng = np.random.default_rng(0)
    problem = tiny(rng.uniform(0.5, 1, (1, 4, 2, 3)), rng.normal(size=(1, 5, 1, 3)), rng.normal(size=(1, 5, 1, 3)))
    values = getattr(problem, name).copy()
    values[0, 3] = value
    problem = replace(problem, **{name: values}, **options)
    with np.errstate(invalid="ignore"):
        got, want = oracle.forward(problem), rowwise.forward(problem)
    assert_agree(got, want)
    assert np.isfinite(want[0][0, :2]).all()  # which do not see key 3
    if (name, value) != ("k", -np.inf):
        sees = rowwise.visible(problem)[0, 0, :, 3]
        assert not np.isfinite(want[0][0, sees]).any()


def tiny(q: Any, k: Any, v: Any, **options: Any) -> Problem:
    return Problem(dtype="float64", q=np.asarray(q, float), k=np.asarray(k, float), v=np.asarray(v, float), **options)


def scores(q: Any, *logits: float, **options: Any) -> Problem:
    """One head whose query n has the exact logits q[n] * logits, with values that no two keys share."""
    v = [1.0, -3.0, 0.5, 7.0, -2.0][: len(logits)]
    shaped = [np.reshape(each, (1, -1, 1, 1)) for each in (q, logits, v)]
    return tiny(*shaped, **{"scale": 1.0, **options})


CORNERS: dict[str, Problem] = {
    "beyond exp": scores([1, -1, 2], 800.0, -800.0, 799.5, 0.0),
    "far beyond exp": scores([1, -1], 2.0**40, -(2.0**40), 2.0**40 - 1.5),
    "all low": scores([1], -1000.0, -1001.0, -1000.25),
    "close together": scores([2.0**-20, 1], 1.0, 1 + 2.0**-30, 1 - 2.0**-30),
    "close together, far from 0": scores([1], 4096.0, 4096 + 2.0**-20, 4096 - 2.0**-20),
    "underflow": scores([1], 0.0, -744.0, -746.0, -700.0),
    "equal": scores([0, 3], 5.0, 5.0, 5.0),
    "one key": scores([-700, 700], 1.0),
    "subnormal scores": scores([2.0**-1070, 1], 1.0, 2.0, -1.0),
    "scale of 0": scores([1, 2], 800.0, -1.0, scale=0.0),
    "negative scale": scores([1, 2], 800.0, -1.0, 3.0, scale=-0.5),
    "default scale": scores([1, 2], 3.0, -1.0, scale=None),
    "dead": scores([1, 2, 3], 1.0, 2.0, causal=True),
    "dead, with a sink": scores([1, 2, 3], 1.0, 2.0, causal=True, sinks=np.array([-3.5])),
    "a sink above": scores([1, 2], 1.0, 2.0, sinks=np.array([800.0])),
    "a sink below": scores([1, 2], 1.0, 2.0, sinks=np.array([-800.0])),
    "a sink beside low logits": scores([1, 2], -1000.0, -1000.5, sinks=np.array([-1000.0])),
    "softcap, flat": scores([2.0**-10, 1], 2.0**-20, -1.0, softcap=2.0**20),
    "softcap, saturated": scores([1, -1], 300.0, 600.0, -300.0, softcap=0.5),
    "softcap of huge": scores([1, -1], 2.0**30, -(2.0**30), 2.0**29, softcap=50.0),
    "softcap, knee": scores([1, 2], 1.0, 2.0, 3.0, -1.5, softcap=1.5, sinks=np.array([0.5])),
    "low bias": scores([1, 2], 1.0, 2.0, 3.0, bias=np.full(3, -(2.0**40))),
    "a low bias among others": scores([1, 2], 1.0, 2.0, 3.0, bias=np.array([-1e4, 0.5, -np.inf])),
    "bias after softcap": scores([1, 2], 30.0, 2.0, bias=np.array([-2.5, 700.0]), softcap=2.0),
    "ALiBi": scores([1, 2, 3], 1.0, 2.0, 3.0, 4.0, alibi_slopes=np.array([0.75]), window=(1, None)),
    "lengths": scores([1, 2, 3], 1.0, 2.0, 3.0, 4.0, seqlens_k=np.array([2]), causal=True, window=(0, 5)),
}


def exact(problem: Problem) -> tuple[Array, Array]:
    """The contract with 50 digits, for one head of one batch row."""
    with mpmath.workdps(50):
        rows = [_exact_row(problem, i) for i in range(problem.q.shape[1])]
    out, lse = zip(*rows, strict=True)
    return np.array(out, float).reshape(1, -1, 1, 1), np.array(lse, float).reshape(1, 1, -1)


def _exact_row(problem: Problem, i: int) -> tuple[float, float]:
    q, k, v = (getattr(problem, name).ravel() for name in ("q", "k", "v"))
    length = len(k) if problem.seqlens_k is None else int(problem.seqlens_k[0])
    diagonal = i + (length - len(q))
    left, right = problem.window or (None, None)
    scale = mpmath.mpf(1) if problem.scale is None else mpmath.mpf(problem.scale)
    terms, values = [], []
    for j in range(length):
        bias = 0.0 if problem.bias is None else float(problem.bias[j])
        outside = (problem.causal and j > diagonal) or (left is not None and j < diagonal - left)
        if outside or (right is not None and j > diagonal + right) or bias == -np.inf:
            continue
        score = mpmath.mpf(q[i]) * mpmath.mpf(k[j]) * scale
        if problem.softcap is not None:
            score = problem.softcap * mpmath.tanh(score / problem.softcap)
        slope = 0.0 if problem.alibi_slopes is None else problem.alibi_slopes[0]
        terms.append(mpmath.exp(score + bias - mpmath.mpf(slope) * abs(diagonal - j)))
        values.append(mpmath.mpf(v[j]))
    sink = 0 if problem.sinks is None else mpmath.exp(mpmath.mpf(problem.sinks[0]))
    total = mpmath.fsum(terms) + sink
    if total == 0:
        return 0.0, -np.inf
    out = mpmath.fsum(term * value for term, value in zip(terms, values, strict=True)) / total
    return float(out), float(mpmath.log(total))


@pytest.mark.parametrize("oracle_of", [oracle.forward, rowwise.forward], ids=["oracle", "rowwise"])
@pytest.mark.parametrize("name", CORNERS)
def test_corners_with_fifty_digits(name: str, oracle_of: Oracle) -> None:
    assert_agree(oracle_of(CORNERS[name]), exact(CORNERS[name]))
