"""What a failure says: the element that belongs to the check that failed, and the key of the declared arithmetic that
would explain it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from conformance.strangers import PROFILE, honest, one
from support import Load, backend_source, stranger
from xattn_conformance.array import Array
from xattn_conformance.case import Case
from xattn_conformance.ops.attention.mutants.ways import answer
from xattn_conformance.ops.registry import OPS
from xattn_conformance.profiles.schema import parse
from xattn_conformance.result import CaseResult
from xattn_conformance.running import target
from xattn_conformance.running.explained import by_one_key
from xattn_conformance.running.judge import judge
from xattn_conformance.tolerance.arithmetic import CANONICAL, Arithmetic
from xattn_conformance.tolerance.compare import compare
from xattn_conformance.tolerance.expected import Expected
from xattn_conformance.tolerance.limits import limit

SHAPE = (2, 3, 40, 8)  # batch, heads, rows, columns
SIGMA = 1e-3
# In each, one check fails and another element has the largest error of all.
ONE_CHECK: dict[str, Callable[[Array], Any]] = {
    "zrow": lambda z: z[0, 1, 3].__iadd__(6.5),
    "zhead": lambda z: z[0, 1].__iadd__(2.5 * np.where(np.arange(SHAPE[3]) % 2, 1, -1)),
    "bias": lambda z: z[0, 1].__iadd__(1.5 * np.where(np.arange(SHAPE[2]) % 2, 1, 0.9)[:, None]),
}


@pytest.mark.parametrize("metric", ONE_CHECK)
def test_the_worst_element_is_one_of_the_check_that_failed(metric: str) -> None:
    value = np.random.default_rng(0).normal(size=SHAPE)
    z = np.zeros(SHAPE)
    ONE_CHECK[metric](z)
    z[1, 2, 17, 5] = 0.99 * limit("zmax", 1)
    found = compare({"out": Expected(value, np.full(SHAPE, SIGMA))}, {"out": value + SIGMA * z})
    assert f"out.{metric}" in {check.name for check in found.failed}
    place = found.places[f"out.{metric}"]
    assert place.index[:2] == (0, 1)
    assert (float(place.got) - float(place.want)) / float(place.sigma) == pytest.approx(np.abs(z[0, 1]).max())
    assert found.worst == found.places[found.failed[0].name]


def test_the_worst_element_is_of_the_tensor_that_failed() -> None:
    value, want = np.ones(SHAPE), np.full(SHAPE, SIGMA)
    lse = np.zeros((2, 3, 40, 1))
    expected = {"out": Expected(value, want), "lse": Expected(lse, np.zeros(lse.shape))}
    got = {"out": value + 7 * SIGMA * (np.arange(SHAPE[3]) == 2), "lse": lse.copy()}
    got["lse"][1, 0, 39] = 1e-9  # has no tolerance, so no error in standard deviations either
    found = compare(expected, got)
    assert found.places["lse.exact"].index == (1, 0, 39, 0)
    assert {check.name.partition(".")[0] for check in found.failed} >= {"lse"}


@pytest.fixture
def judged(strangers: Path, load: Load) -> Callable[[Case, str, str], CaseResult]:
    def make(case: Case, after: str, profile: str) -> CaseResult:
        load(stranger(strangers, "acme", backend_source("acme", 0.0, body=honest(after=after))))
        return judge(case, target.make("acme", "cpu", parse(profile.format("acme"))))

    return make


def varied(*names: str) -> Case:
    return msgspec.structs.replace(one("attention/causal+lse/float32/b?-q1?-k1?-*/needle"), variations=names)


def test_a_variation_that_is_compared_names_an_element(judged: Callable[..., CaseResult]) -> None:
    result = judged(varied("strides"), "found.out[0, 0, 0, 0] += 0 if v.is_contiguous() else 1", PROFILE)
    assert result.message.startswith("strides:out.zmax is ")
    assert "; there out[0, 0, 0, 0] is " in result.message
    assert result.worst is not None
    assert result.worst.index == (0, 0, 0, 0)


def test_a_variation_that_must_give_the_same_bits_names_an_element(judged: Callable[..., CaseResult]) -> None:
    promise = PROFILE + "[bitwise]\nstrides = true\n"
    result = judged(varied("strides"), "found.out[0, 1, 0, 2] += 0 if v.is_contiguous() else 1", promise)
    assert "elements differ: 1 of out, first [0, 1, 0, 2]: " in result.message
    assert " became " in result.message


# A kernel that rounds at a place of which its profile says nothing, and a case in which that fails.
UNDECLARED = (
    ("probability_gradients", "input", "attention/grad.qkv:causal/bfloat16/b2-q17-k17-h4-g2-d32-v32/normal"),
    ("recomputed_scores", "input", "attention/grad.qkv.lse:causal+lse/bfloat16/b1-q17-k15-h2-g2-d32-v32/needle"),
    ("scaled_q", True, "attention/grad.qkv.lse:causal+lse/bfloat16/b1-q17-k15-h2-g2-d32-v32/needle"),
    ("exp_bits", 12, "attention/grad.qkv.lse:causal+lse/bfloat16/b1-q17-k15-h2-g2-d32-v32/needle"),
)


@pytest.mark.parametrize(("key", "value", "id_"), UNDECLARED, ids=[key for key, *_ in UNDECLARED])
def test_a_failure_that_one_key_would_explain_says_which(key: str, value: Any, id_: str) -> None:
    op = OPS["attention"]
    (case,) = [case for case in op.cases() if case.id == id_]
    problem = op.problem(case)
    got = answer(problem, arithmetic=msgspec.structs.replace(CANONICAL, **{key: value}))

    def expect(arithmetic: Arithmetic) -> Any:
        return op.expected(case, problem, arithmetic)

    (said,) = by_one_key(expect, got, CANONICAL, compare(expect(CANONICAL), got).checks)
    # Of the exponential's bits the least that explains it.
    written = {"scaled_q": "true", "exp_bits": "16"}.get(key, '"input"')
    assert f"{key} = {written}" in said


def test_a_wrong_answer_is_explained_by_no_key(judged: Callable[..., CaseResult]) -> None:
    result = judged(varied(), "found.out.mul_(1.5)", PROFILE)
    assert result.status == "FAIL"
    assert "would pass" not in result.message


def test_the_explanation_stands_in_the_message(judged: Callable[..., CaseResult]) -> None:
    result = judged(varied(), "found.lse.mul_(1 + 2e-5)", PROFILE)
    assert result.status == "FAIL"
    assert "; would pass with " in result.message
    assert "exp_bits = 1" in result.message
