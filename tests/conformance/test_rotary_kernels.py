"""apply_rotary in the suite: wrong kernels fail, right ones pass."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from xattn_conformance.case import DTYPES, Case
from xattn_conformance.mutants.mutant import Mutant
from xattn_conformance.mutants.table import mutants_on, right_on
from xattn_conformance.ops.apply_rotary.mutants.kernel import Kernel
from xattn_conformance.ops.registry import OPS
from xattn_conformance.tolerance.arithmetic import CANONICAL
from xattn_conformance.tolerance.compare import compare

OP = OPS["apply_rotary"]
SMALL = [case for case in OP.cases() if case.shape["seqlen_q"] <= 130]
CORE = [case for case in SMALL if case.level == "core"]
BY_NAME = {mutant.name: mutant for mutant in OP.mutants()}


def dies(mutant: Mutant, case: Case) -> bool:
    return any(outcome.failed for outcome in mutants_on(case, mutants=[mutant]))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", BY_NAME)
def test_a_wrong_kernel_fails_a_small_case_in_every_dtype(name: str, dtype: str) -> None:
    """Of the extended level where gradients are wrong: core asks for none."""
    mutant = BY_NAME[name]
    cases = [case for case in (SMALL if mutant.backward else CORE) if case.dtype == dtype]
    assert dtype in mutant.equivalent_in or any(dies(mutant, case) for case in cases)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_kernel_in_the_dtype_of_q_fails_in_both_styles(dtype: str) -> None:
    for interleaved in (False, True):
        chosen = [c for c in CORE if c.dtype == dtype and bool(c.options.get("interleaved")) is interleaved]
        assert any(dies(BY_NAME["rotary-in-dtype"], case) for case in chosen)


@pytest.mark.parametrize("case", SMALL[::3], ids=lambda case: case.id)
def test_right_kernels_pass(case: Case) -> None:
    outcomes = right_on(case)
    assert len(outcomes) == len(OP.right_kernels())
    assert not [outcome for outcome in outcomes if outcome.failed]


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_rounds_nothing_must_be_exact(dtype: str) -> None:
    """Quarter turns and what passes through: the last bit of one element, and the case fails for it."""
    quarters = next(case for case in CORE if case.dtype == dtype and case.family == "quarters")
    partial = next(case for case in CORE if case.dtype == dtype and case.options.get("rotary_dim") == 16)
    for case, column in ((quarters, 0), (partial, 79)):
        problem = OP.problem(case)
        expected, got = OP.expected(case, problem, CANONICAL), Kernel(problem, CANONICAL).run()
        assert not compare(expected, got).failed
        out = np.array(got["out"], np.float64)
        out[0, 0, 0, column] *= 1 + 2.0 ** -{"float32": 22, "float16": 9, "bfloat16": 6}[dtype]
        assert {check.name for check in compare(expected, {**got, "out": out}).failed} == {"out.exact"}


def test_gradients_are_looked_at_where_they_are_asked_for() -> None:
    """A forward that is wrong fails by its results, a backward by its gradients."""
    case = next(case for case in SMALL if case.grads == ("q", "k") and case.family == "free")
    problem = OP.problem(case)
    expected = OP.expected(case, problem, CANONICAL)
    right = Kernel(problem, CANONICAL).run()
    turned = BY_NAME["rotary-gradient-forward"].run(problem, CANONICAL)
    failed = {check.name.partition(".")[0] for check in compare(expected, turned).failed}
    assert failed == {"dq", "dk"}
    assert all(np.array_equal(turned[name], right[name]) for name in ("out", "out_k"))
    forward = Kernel(replace(problem, sin=-problem.sin), CANONICAL).run()
    assert {"out.zmax", "out_k.zmax"} <= {check.name for check in compare(expected, forward).failed}
