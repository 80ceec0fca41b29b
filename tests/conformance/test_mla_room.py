"""mla_attention in the suite: two ways to its goldens, what its recipes make, and kernels that are right or wrong."""

from __future__ import annotations

import numpy as np
import pytest
from support import extended
from xattn_conformance.case import Case, scores
from xattn_conformance.golden import inputs
from xattn_conformance.mutants.table import mutants_on, right_on
from xattn_conformance.mutants.witnesses import witnesses_in
from xattn_conformance.ops.mla_attention.cases import CASES as TABLE
from xattn_conformance.ops.mla_attention.op import MlaAttentionOp
from xattn_conformance.ops.registry import OPS
from xattn_conformance.tolerance.arithmetic import CANONICAL

OP = MlaAttentionOp()
CASES = [case for case in OP.cases() if case.dtype == "bfloat16"]


def some(**options: object) -> Case:
    return next(case for case in CASES if options.items() <= case.options.items())


def test_inputs_are_pinned_in_the_room() -> None:
    assert set(inputs.in_room(OPS["mla_attention"])) == {case.id for case in inputs.every_case(OP)}


@pytest.mark.parametrize("case", [*OP.proved()[::8], *extended(*OP.proved())], ids=lambda case: case.id)
def test_both_oracles_agree(case: Case) -> None:
    """One by one, and all queries over all slots in one call under a mask."""
    assert OP.disagreement(OP.problem(case)) == ""


def test_values_are_the_first_columns_of_keys() -> None:
    for case in (some(q="ragged"), some(storage="int4"), some(topk=24)):
        made = OP.problem(case)
        assert made.rank == case.shape["headdim_v"] < made.k_cache.shape[3]
        np.testing.assert_array_equal(made.v_cache, made.k_cache[..., : made.rank])
        assert "v_cache" not in made.tensors


def test_lists_have_full_rows_dead_rows_and_holes() -> None:
    made = OP.problem(some(topk=5, q="ragged"))
    lists = made.topk_indices
    assert lists is not None
    named = [row[row >= 0] for row in lists]
    assert {0, 5} < {len(row) for row in named}
    assert all(len(set(row.tolist())) == len(row) for row in named)
    first = [np.flatnonzero(row < 0)[:1] for row in lists]
    assert any(len(hole) and (row[hole[0] :] >= 0).any() for hole, row in zip(first, lists, strict=True))
    # Of all sequences, in no order; what is in no list is not looked at.
    pages = [set((row // made.k_cache.shape[1]).tolist()) for row in named]
    assert any(not any(own <= set(table.tolist()) for table in made.block_table) for own in pages if own)
    assert any(row.tolist() != sorted(row.tolist()) for row in named)
    assert np.isnan(made.k_cache[~made.seen_slots()]).any()
    assert np.isfinite(OP.expected(CASES[0], made, CANONICAL)["out"].value).all()


def test_padding_is_nobodys() -> None:
    for case in (some(padding=True, return_lse=True, sinks="log"), some(padding=True, topk=8, return_lse=True)):
        made, found = OP.problem(case), OP.expected(case, OP.problem(case), CANONICAL)
        after = slice(made.tokens, None)
        assert np.isnan(made.q[after]).all()
        assert (found["out"].value[:, :, after] == 0).all()
        assert (found["lse"].value[:, :, after] == -np.inf).all()


def test_every_recipe_is_used() -> None:
    values = {(name, str(value)) for case in CASES for name, value in case.options.items()}
    assert {("k", name) for name in TABLE.table().lengths if name != "one"} | {("q", "one")} <= values
    assert {name for case in CASES for name in case.variations} >= set(TABLE.variations)


def test_wrong_kernels_fail() -> None:
    """Those of latents and lists, each by its first witness."""
    cases = {case.id: case for case in OP.cases()}
    own = [mutant for mutant in OP.mutants() if mutant.name.startswith("mla-")]
    assert len(own) > 35
    for mutant in own[:16]:
        with np.errstate(all="ignore"):
            (outcome,) = mutants_on(cases[witnesses_in(mutant.name, "bfloat16")[0]], mutants=[mutant])
        assert outcome.failed, mutant.name


def test_right_kernels_pass() -> None:
    small = [case for case in CASES if scores(case) < 3_000][::9]
    outcomes = [outcome for case in small for outcome in right_on(case)]
    assert len(outcomes) > 15
    assert not [outcome for outcome in outcomes if outcome.failed]
