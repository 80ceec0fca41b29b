"""paged_attention in the suite: two ways to its goldens, what its recipes make, and kernels that are right."""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from xattn_conformance.case import Case, scores
from xattn_conformance.golden import inputs
from xattn_conformance.mutants.impostor import UNDECLARED
from xattn_conformance.mutants.table import mutants_on, right_on
from xattn_conformance.mutants.witnesses import witnesses_in
from xattn_conformance.ops.call import execute
from xattn_conformance.ops.manners import MANNERS
from xattn_conformance.ops.paged import PADDING
from xattn_conformance.ops.paged_attention.cases import CASES as TABLE
from xattn_conformance.ops.paged_attention.op import PagedAttentionOp
from xattn_conformance.ops.paged_variations import VARIATIONS
from xattn_conformance.ops.registry import OPS
from xattn_conformance.running.judge import judge
from xattn_conformance.running.target import Target
from xattn_conformance.tolerance.arithmetic import CANONICAL

import xattn

OP = PagedAttentionOp()
CASES = [case for case in OP.cases() if case.dtype == "bfloat16"]


def some(**options: object) -> Case:
    return next(case for case in CASES if options.items() <= case.options.items())


def test_inputs_are_pinned_in_the_room() -> None:
    assert set(inputs.in_room(OPS["paged_attention"])) == {case.id for case in inputs.every_case(OP)}


@pytest.mark.parametrize("case", OP.proved(), ids=lambda case: case.id)
def test_both_oracles_agree(case: Case) -> None:
    """One by one, and all queries over all slots in one call under a mask."""
    assert OP.disagreement(OP.problem(case)) == ""


def test_pages_behind_a_window_are_gone_or_anothers() -> None:
    dropped = OP.problem(some(pages="dropped", q="one"))
    blocks = len(dropped.k_cache)
    assert (dropped.block_table[:, :6] == -1).all()
    assert (dropped.block_table[:, 9:] >= blocks).all()
    stale = OP.problem(some(pages="stale", q="one"))
    assert ((stale.block_table >= 0) & (stale.block_table < blocks)).all()
    assert set(stale.block_table[1, :6]) <= set(stale.block_table[0]) | set(stale.block_table[1])
    for one in (dropped, stale):
        assert np.isfinite(OP.expected(CASES[0], one, CANONICAL)["out"].value).all()


def test_a_shared_page_is_in_several_rows_and_far_pages_need_17_bits() -> None:
    shared = OP.problem(some(pages="shared"))
    assert len(set(shared.block_table[:, 0])) == 1
    assert OP.problem(some(pages="far")).block_table[:, 0].min() > 65_535


def test_slots_of_no_sequence_are_nan_or_zero() -> None:
    for finite in (False, True):
        made = OP.problem(some(q="ragged", unseen_finite=True) if finite else some(q="ragged"))
        unseen = made.k_cache[~made.seen_slots()]
        assert np.isfinite(unseen).all() == finite


def test_padding_is_nobodys() -> None:
    case = some(padding=True, return_lse=True)
    made, found = OP.problem(case), OP.expected(case, OP.problem(case), CANONICAL)
    after = slice(int(made.starts_q[-1]), None)
    assert np.isnan(made.q[after]).all()
    assert len(made.q[after]) == PADDING
    assert (found["out"].value[:, :, after] == 0).all()
    assert (found["lse"].value[:, :, after] == -np.inf).all()


def test_every_recipe_and_variation_is_used() -> None:
    values = {(name, str(value)) for case in CASES for name, value in case.options.items()}
    assert {("k", name) for name in TABLE.table().lengths if name != "one"} | {("q", "one")} <= values
    assert {("pages", name) for name in ("dropped", "stale", "shared", "far")} <= values
    assert {name for case in CASES for name in case.variations} == {*TABLE.variations, *MANNERS}


def test_attentions_wrong_kernels_fail_in_pages_too() -> None:
    cases = {case.id: case for case in OP.cases()}
    inherited = [mutant for mutant in OP.mutants() if mutant.inherited and "bfloat16" not in mutant.equivalent_in]
    assert len(inherited) > 80
    for mutant in inherited:
        with np.errstate(all="ignore"):
            (outcome,) = mutants_on(cases[witnesses_in(mutant.name, "bfloat16")[0]], mutants=[mutant])
        assert outcome.failed, mutant.name


def test_right_kernels_pass() -> None:
    small = [case for case in CASES if scores(case) < 20_000][::6]
    outcomes = [outcome for case in small for outcome in right_on(case)]
    assert len(outcomes) > 50
    assert not [outcome for outcome in outcomes if outcome.failed]


def test_an_offset_of_32_bits_is_seen() -> None:
    case = next(case for case in CASES if "far" in case.variations)
    call = OP.call(case, OP.problem(case), "cpu")
    (other,) = VARIATIONS["far"](call).calls
    cache = other.tensors["k_cache"]
    last = int(other.tensors["block_table"].max())
    assert last * cache.stride(0) >= 2**31
    assert (other.tensors["block_table"] == last).any()

    def of_32_bits(op: str, given: Mapping[str, Any], backend: str) -> Any:
        table, step = given["block_table"], given["k_cache"].stride(0)
        wrapped = torch.where(table * step < 2**31, table, 0)
        return getattr(xattn, op)(**{**given, "block_table": wrapped.int()}, backend=backend)

    for run, status in ((of_32_bits, "FAIL"), (execute, "PASS")):
        judged = Target("reference", "cpu", "cpu", UNDECLARED, run, "stand-in")
        assert judge(case, judged).status == status


def test_a_mask_that_is_a_finite_number_is_outweighed() -> None:
    case = next(case for case in CASES if "big" in case.variations and case.options.get("unseen_finite"))

    def added(op: str, given: Mapping[str, Any], backend: str) -> Any:
        """What a kernel does that hides keys by adding -1e9: a key of 2^100 still counts."""
        out = execute(op, given, backend)
        return out + (given["k_cache"].nan_to_num(0.0).abs() >= 2.0**15).any()

    for run, status in ((added, "FAIL"), (execute, "PASS")):
        judged = Target("reference", "cpu", "cpu", UNDECLARED, run, "stand-in")
        assert judge(case, judged).status == status


def test_at_the_edge_the_pool_and_its_memory_end_with_the_last_page_in_use() -> None:
    case = next(case for case in CASES if "edge" in case.variations)
    call = OP.call(case, OP.problem(case), "cpu")
    free = {name: torch.cat([call.tensors[name]] * 2) for name in ("k_cache", "v_cache")}
    (other,) = VARIATIONS["edge"](call.with_tensors(**free)).calls
    for name in free:
        cache = other.tensors[name]
        assert len(cache) == int(other.tensors["block_table"].max()) + 1
        assert (cache.data_ptr() + cache.numel() * cache.element_size()) % mmap.PAGESIZE == 0
        torch.testing.assert_close(cache, call.tensors[name][: len(cache)], rtol=0, atol=0, equal_nan=True)
