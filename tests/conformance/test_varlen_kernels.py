"""varlen_attention in the suite: attention's wrong kernels fail, and right ones pass. Its own wrong ones are in
test_witnesses.py."""

from __future__ import annotations

import numpy as np
import pytest
from support import extended
from xattn_conformance.case import DTYPES, Case, scores
from xattn_conformance.mutants.table import mutants_on, right_on
from xattn_conformance.mutants.witnesses import witnesses_in
from xattn_conformance.ops.registry import OPS

OP = OPS["varlen_attention"]
BY_ID = {case.id: case for case in OP.cases()}


@pytest.mark.parametrize("dtype", DTYPES)
def test_attentions_wrong_kernels_fail_in_this_layout_too(dtype: str) -> None:
    inherited = [mutant for mutant in OP.mutants() if mutant.inherited and dtype not in mutant.equivalent_in]
    assert len(inherited) > 80
    for mutant in inherited:
        first = witnesses_in(mutant.name, dtype)[0]
        with np.errstate(all="ignore"):
            (outcome,) = mutants_on(BY_ID[first], mutants=[mutant])
        assert outcome.failed, mutant.name


def small(dtype: str) -> list[Case]:
    return [case for case in OP.cases() if case.dtype == dtype and scores(case) < 40_000][::4]


@pytest.mark.parametrize("dtype", ["bfloat16", *extended("float32", "float16")])
def test_right_kernels_pass(dtype: str) -> None:
    outcomes = [outcome for case in small(dtype) for outcome in right_on(case)]
    assert len(outcomes) > 100
    assert not [outcome for outcome in outcomes if outcome.failed]
