"""attention_backward in the suite: its goldens are attention's gradients, and wrong kernels fail."""

from __future__ import annotations

import numpy as np
import pytest
from support import extended
from xattn_conformance.case import DTYPES, Case, scores
from xattn_conformance.golden import inputs
from xattn_conformance.mutants.mutant import Mutant
from xattn_conformance.mutants.table import mutants_on, right_on
from xattn_conformance.mutants.witnesses import witnesses_in
from xattn_conformance.ops.attention_backward.mutants import OWN
from xattn_conformance.ops.attention_backward.op import AttentionBackwardOp
from xattn_conformance.tolerance.arithmetic import CANONICAL

OP = AttentionBackwardOp()
CASES = [case for case in OP.cases() if case.dtype == "float32"]
BY_ID = {case.id: case for case in OP.cases()}


def test_inputs_are_pinned_in_the_room() -> None:
    assert set(inputs.in_room(OP)) >= {case.id for case in OP.cases()}


@pytest.mark.parametrize("case", OP.proved(), ids=lambda case: case.id)
def test_both_oracles_agree(case: Case) -> None:
    """Shares by blocks of NumPy, which add up to what a loop over rows says of all keys."""
    assert OP.disagreement(OP.problem(case)) == ""


def test_the_golden_is_the_contracts_formula_of_what_is_given() -> None:
    """p = exp(s - lse), dS = p (dout . v - dout . out), within what their formats leave of out and lse."""
    case = next(case for case in CASES if case.options["part"] == "2/3" and "causal" in case.options)
    problem = OP.problem(case)
    part, (out, lse) = problem.part, problem.results
    assert part.dout is not None
    assert isinstance(part.align, int)
    found = OP.expected(case, problem, CANONICAL)
    group = part.q.shape[2] // part.k.shape[2]
    i, j = np.arange(part.q.shape[1])[:, None], np.arange(part.k.shape[1])
    for b, h in np.ndindex(part.q.shape[0], part.q.shape[2]):
        k, v, g = part.k[b, :, h // group], part.v[b, :, h // group], part.dout[b, :, h]
        score = part.q[b, :, h] @ k.T / np.sqrt(part.q.shape[3])
        p = np.where(j <= i + part.align, np.exp(score - lse[b, h][:, None]), 0.0)
        dscore = p * (g @ v.T - (g * out[b, :, h]).sum(-1, keepdims=True)) / np.sqrt(part.q.shape[3])
        np.testing.assert_allclose(found["dq"].value[b, h], dscore @ k, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mutant", OWN, ids=lambda mutant: mutant.name)
def test_its_own_wrong_kernels_fail_where_they_are_known_to(mutant: Mutant, dtype: str) -> None:
    for name in witnesses_in(mutant.name, dtype):
        (outcome,) = mutants_on(BY_ID[name], mutants=[mutant])
        assert outcome.failed


@pytest.mark.parametrize("dtype", ["bfloat16", *extended("float32", "float16")])
def test_right_kernels_pass(dtype: str) -> None:
    cases = [case for case in OP.cases() if case.dtype == dtype and scores(case) < 30_000][::4]
    outcomes = [outcome for case in cases for outcome in right_on(case)]
    assert len(outcomes) > 50
    assert not [outcome for outcome in outcomes if outcome.failed]
