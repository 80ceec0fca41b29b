"""varlen_attention in the suite: its goldens are attention's, sequence by sequence, and its inputs."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from xattn_conformance.case import DTYPES, Case, scores
from xattn_conformance.golden import inputs, manifest
from xattn_conformance.ops import sequences
from xattn_conformance.ops.attention.noise import forward, gradient
from xattn_conformance.ops.registry import OPS
from xattn_conformance.ops.varlen_attention import problem
from xattn_conformance.ops.varlen_attention.cases import CASES as TABLE
from xattn_conformance.ops.varlen_attention.op import VarlenAttentionOp
from xattn_conformance.ops.varlen_attention.variations import VARIATIONS
from xattn_conformance.tolerance.arithmetic import CANONICAL

OP = VarlenAttentionOp()
CASES = [case for case in OP.cases() if case.dtype == "bfloat16"]
SMALL = [case for case in CASES if scores(case) * case.shape["batch"] < 10**5]


def some(test: Callable[[Case], bool]) -> Case:
    return next(case for case in CASES if test(case))


def test_inputs_are_pinned_in_the_room() -> None:
    assert not [name for name in manifest.installed().inputs if name.startswith("varlen_attention/")]
    assert set(inputs.in_room(OPS["varlen_attention"])) == {case.id for case in inputs.every_case(OP)}
    assert {case.since for case in inputs.every_case(OP)} == {"1.1", "1.2", "1.3"}


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.id)
def test_both_oracles_agree(case: Case) -> None:
    """One by one, and all sequences in one call under a mask."""
    assert OP.disagreement(OP.problem(case)) == ""


@pytest.mark.parametrize("case", CASES[::9], ids=lambda case: case.id)
def test_the_golden_of_a_sequence_is_attentions(case: Case) -> None:
    made = OP.problem(case)
    whole = OP.expected(case, made, CANONICAL)
    for rows, sequence in zip(made.rows, OP.sequences(made), strict=True):
        for name, one in forward.expected(sequence, CANONICAL).items():
            if name in whole:
                np.testing.assert_array_equal(whole[name].value[:, :, rows], one.value)
                np.testing.assert_array_equal(whole[name].sigma[:, :, rows], one.sigma)


@pytest.mark.parametrize("case", [case for case in CASES if case.grads][::4], ids=lambda case: case.id)
def test_the_gradient_of_a_sequence_is_attentions(case: Case) -> None:
    made = OP.problem(case)
    whole = OP.expected(case, made, CANONICAL)
    parts = [gradient.expected(sequence, CANONICAL) for sequence in OP.sequences(made)]
    for name in (f"d{each}" for each in made.grads):
        if name == "dsinks":
            assert np.array_equal(whole[name].value, sum(part[name].value for part in parts))
            continue
        for rows, part in zip(made.rows_of(name), parts, strict=True):
            assert np.array_equal(whole[name].value[:, :, rows], part[name].value)


def test_what_comes_in_for_padding_has_no_gradient() -> None:
    case = some(lambda case: "sinks" in case.grads and "padding" in case.options)
    made = OP.problem(case)
    assert made.dout is not None
    assert (made.dout[made.rows[-1].stop :] == 1.0).all()
    found = OP.expected(case, made, CANONICAL)
    for name in ("dq", "dk", "dv"):
        after = slice(made.rows_of(name)[-1].stop, None)
        assert (found[name].value[:, :, after] == 0).all()
        assert not found[name].sigma[:, :, after].any()


def test_rows_of_no_sequence_are_zero_and_exactly_so() -> None:
    case = some(lambda case: "padding" in case.options and "return_lse" in case.options)
    made = OP.problem(case)
    after = slice(made.rows[-1].stop, None)
    found = OP.expected(case, made, CANONICAL)
    assert np.isnan(made.q[after]).all()
    assert np.isnan(made.k[made.keys[-1].stop :]).all()
    assert found["out"].value[:, :, after].shape[2] == problem.PADDING
    assert (found["out"].value[:, :, after] == 0).all()
    assert (found["lse"].value[:, :, after] == -np.inf).all()
    assert not any(one.sigma[:, :, after].any() for one in found.values())


def test_sequences_have_numbers_of_their_own() -> None:
    made = OP.problem(some(lambda case: case.options["q"] == "equal" and case.shape["batch"] == 3))
    one, other = OP.sequences(made)[:2]
    assert not np.array_equal(one.q, other.q)


@pytest.mark.parametrize("recipe", TABLE.table().lengths)
def test_lengths_are_what_the_table_says(recipe: str) -> None:
    made = sequences.lengths(recipe, 10, 130)
    assert made.shape == (10,)
    assert made.max() == (129 if recipe == "edges" else 130)
    assert (made == 0).any() == (recipe == "zeros")
    assert len(sequences.lengths(recipe, 0, 130)) == 0


def test_every_option_is_in_some_case_and_core_has_one_of_each_kind() -> None:
    values = {(name, str(value)) for case in CASES for name, value in case.options.items()}
    assert {("q", name) for name in TABLE.table().lengths} <= values
    assert {("align", "top_left"), ("align", "7"), ("align", "each"), ("bounds", "loose"), ("bounds", "none")} <= values
    core = [case for case in CASES if case.level == "core"]
    assert {name for case in core for name in case.options} >= {
        "q",
        "k",
        "padding",
        "bounds",
        "causal",
        "window",
        "align",
    }
    assert {name for case in core for name in case.variations} >= {
        "repeat", "batch", "order", "strides", "padding", "poison", "big", "edge",
    }  # fmt: skip
    assert 40 <= len(CASES) <= 130
    assert {dtype: len(CASES) for dtype in DTYPES} == {
        dtype: sum(case.dtype == dtype for case in OP.cases()) for dtype in DTYPES
    }


def test_poison_is_where_no_query_looks() -> None:
    case = some(lambda case: case.family == "poison" and "padding" in case.options)
    made, clean = OP.problem(case), problem.poisoned(OP.problem(case), 0.0)
    assert np.isnan(made.q).any()
    assert np.isfinite(clean.q).all()
    assert np.isfinite(clean.v).all()
    for name, one in OP.expected(case, made, CANONICAL).items():
        np.testing.assert_array_equal(one.value, OP.expected(case, clean, CANONICAL)[name].value)


def test_a_token_past_32_bits_and_slices_of_one_tensor_hold_the_same_values() -> None:
    for name in ("far", "packed", "misaligned"):
        case = next(case for case in CASES if name in case.variations and not case.grads)
        call = OP.call(case, OP.problem(case), "cpu")
        (other,) = VARIATIONS[name](call).calls
        q, k, v = (other.tensors[each] for each in "qkv")
        assert all(torch.equal(other.tensors[each], tensor) for each, tensor in call.tensors.items())
        if name == "far":
            assert (len(q) - 1) * q.stride(0) >= 2**31
        elif name == "packed":
            assert q.stride(0) == q.shape[2] * (q.shape[1] + k.shape[1] + v.shape[1])
        else:
            assert all(each.data_ptr() % 16 == each.element_size() for each in (q, k, v))
