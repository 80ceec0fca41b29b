"""The cases that are known to kill the wrong kernels of an op do so: what admission and canaries rely on. Of attention,
whose kernels are many, in test_mutants.py."""

from __future__ import annotations

from typing import Any

import pytest
from support import extended
from xattn_conformance.mutants.table import mutants_on
from xattn_conformance.mutants.witnesses import witnesses_in
from xattn_conformance.ops.base import Op
from xattn_conformance.ops.registry import OPS

OTHERS = [op for op in OPS.values() if op.name != "attention"]


@pytest.mark.parametrize("dtype", ["bfloat16", *extended("float32", "float16")])
@pytest.mark.parametrize("op", OTHERS, ids=lambda op: op.name)
def test_every_mutant_dies_by_each_of_its_witnesses(op: Op[Any], dtype: str) -> None:
    cases = {case.id: case for case in op.cases()}
    own = [mutant for mutant in op.mutants() if not mutant.inherited and dtype not in mutant.equivalent_in]
    assert own
    for mutant in own:
        for name in witnesses_in(mutant.name, dtype):
            (outcome,) = mutants_on(cases[name], mutants=[mutant])
            assert outcome.failed, (mutant.name, name)
