"""rotary_write_kv in the suite: two ways to its goldens, and kernels that are right or wrong."""

from __future__ import annotations

import numpy as np
import pytest
from xattn_conformance.case import Case
from xattn_conformance.golden import inputs
from xattn_conformance.mutants.table import mutants_on, right_on
from xattn_conformance.mutants.witnesses import witnesses_in
from xattn_conformance.ops.registry import OPS
from xattn_conformance.ops.rotary_write_kv.op import RotaryWriteOp
from xattn_conformance.tolerance.arithmetic import CANONICAL

OP = RotaryWriteOp()
CASES = {case.id: case for case in OP.cases() if case.dtype == "bfloat16"}


def test_inputs_are_pinned_in_the_room() -> None:
    assert set(inputs.in_room(OPS["rotary_write_kv"])) == {case.id for case in inputs.every_case(OP)}


@pytest.mark.parametrize("case", OP.proved(), ids=lambda case: case.id)
def test_both_oracles_agree(case: Case) -> None:
    assert OP.disagreement(OP.problem(case)) == ""


def test_rows_without_a_slot_are_rotated_and_quarter_turns_are_exact() -> None:
    case = next(case for case in CASES.values() if case.options["slots"] == "holes" and "latent" in case.options)
    problem = OP.problem(case)
    out = problem.turned(problem.q)
    kept = problem.q.shape[2] - 2 * problem.cos.shape[1]
    np.testing.assert_array_equal(out.value[..., :kept], problem.q[..., :kept])
    assert (out.value[problem.slots < 0][..., kept:] != problem.q[problem.slots < 0][..., kept:]).any()
    assert (out.sigma[3::4] == 0).all()
    assert (out.sigma[0, :, kept:] > 0).all()


def test_beside_quantised_caches_every_rotation_is_exact_and_what_is_stored_is_known() -> None:
    cases = [case for case in CASES.values() if "storage" in case.options]
    assert {case.options["scale_of"] for case in cases} == {"head", "token_head"}
    for case in cases:
        problem = OP.problem(case)
        largest, turned = (np.abs(x).max(-1) for x in (problem.k, problem.turned(problem.k).value))
        assert (largest != turned).any()
        assert all((each.sigma == 0).all() for each in OP.expected(case, problem, CANONICAL).values())


def test_wrong_kernels_fail_and_right_ones_pass() -> None:
    for mutant in OP.mutants():
        (outcome,) = mutants_on(CASES[witnesses_in(mutant.name, "bfloat16")[0]], mutants=[mutant])
        assert outcome.failed, mutant.name
    assert not [
        outcome for case in CASES.values() if case.level == "core" for outcome in right_on(case) if outcome.failed
    ]
