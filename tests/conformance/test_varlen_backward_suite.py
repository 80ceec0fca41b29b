"""varlen_attention_backward in the suite: its goldens are varlen_attention's gradients, and wrong kernels fail."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from xattn_conformance.case import DTYPES, Case, scores
from xattn_conformance.golden import inputs
from xattn_conformance.mutants.table import mutants_on, right_on
from xattn_conformance.mutants.witnesses import witnesses_in
from xattn_conformance.ops.registry import OPS
from xattn_conformance.tolerance.arithmetic import CANONICAL

OP = OPS["varlen_attention_backward"]
BY_ID = {case.id: case for case in OP.cases()}
SMALL = [case for case in OP.cases() if case.dtype == "bfloat16" and scores(case) < 30_000]


def test_inputs_are_pinned_in_the_room() -> None:
    assert set(inputs.in_room(OP)) == set(BY_ID)


@pytest.mark.parametrize("case", OP.proved(), ids=lambda case: case.id)
def test_both_oracles_agree(case: Case) -> None:
    assert OP.disagreement(OP.problem(case)) == ""


def test_rows_of_no_sequence_are_nan_in_every_tensor_and_0_in_the_golden() -> None:
    case = next(case for case in SMALL if "padding" in case.options and case.shape["batch"] == 3)
    problem = OP.problem(case)
    call = OP.call(case, problem, "cpu")
    used = int(call.tensors["cu_seqlens_q"][-1])
    assert "sinks" not in call.tensors
    for name in ("dout", "q", "out"):
        assert call.tensors[name][used:].isnan().all()
        assert torch.isfinite(call.tensors[name][:used]).all()
    assert call.tensors["lse"][:, used:].isnan().all()
    assert not OP.expected(case, problem, CANONICAL)["dq"].value[:, :, used:].any()


def test_right_kernels_pass() -> None:
    outcomes = [outcome for case in SMALL[::3] for outcome in right_on(case)]
    assert len(outcomes) > 50
    assert not [outcome for outcome in outcomes if outcome.failed]


@pytest.mark.parametrize("dtype", DTYPES)
def test_inherited_wrong_kernels_fail(dtype: str) -> None:
    inherited = [mutant for mutant in OP.mutants() if mutant.inherited and dtype not in mutant.equivalent_in]
    assert len(inherited) > 50
    for mutant in inherited:
        with np.errstate(all="ignore"):
            (outcome,) = mutants_on(BY_ID[witnesses_in(mutant.name, dtype)[0]], mutants=[mutant])
        assert outcome.failed, mutant.name
