"""deterministic="batch" in the suite: what asks for a sequence's own bits, and kernels that have none."""

from __future__ import annotations

import msgspec
import pytest
import torch
from support import extended
from xattn_conformance.case import Case
from xattn_conformance.mutants.impostor import UNDECLARED, Impostor, outcome
from xattn_conformance.mutants.witnesses import witnesses_in
from xattn_conformance.ops.call import execute
from xattn_conformance.ops.chunks import rows_of
from xattn_conformance.ops.registry import OPS
from xattn_conformance.running.judge import judge
from xattn_conformance.running.target import Target

from xattn.ops.table import OPS as TABLE

PACKED = ("varlen_attention", "paged_attention")
CASES = {case.id: case for name in PACKED for case in OPS[name].cases()}
IMPOSTORS = [impostor for name in PACKED for impostor in OPS[name].impostors()]


def witness(impostor: Impostor, dtype: str) -> Case:
    (name,) = witnesses_in(impostor.name, dtype)
    return CASES[name]


@pytest.mark.parametrize("dtype", ["bfloat16", *extended("float32", "float16")])
@pytest.mark.parametrize("impostor", IMPOSTORS, ids=lambda impostor: impostor.name)
def test_splits_that_follow_from_the_call_are_found_by_bits_alone(impostor: Impostor, dtype: str) -> None:
    found = outcome(impostor, witness(impostor, dtype), UNDECLARED)
    assert found.failed
    assert {name.rpartition(".")[2] for name in found.failed} == {"bits"}


@pytest.mark.parametrize("op", PACKED)
def test_a_kernel_without_a_sequences_own_bits_passes_where_nobody_asks(op: str) -> None:
    """The same splits, and a case that asks for bits from run to run."""
    impostor = next(each for each in OPS[op].impostors() if each.name.endswith("by-batch"))
    case = witness(impostor, "bfloat16")
    asked = msgspec.structs.replace(case, options={**case.options, "deterministic": True}, variations=("batch",))
    with impostor.open() as run:
        result = judge(asked, Target("reference", "cpu", "cpu", UNDECLARED, run, "stand-in"))
    assert not [check.name for check in result.checks if check.name.endswith(".bits")]
    assert not [check.name for check in result.checks if check.name.startswith("batch:") and not check.ok]


ASKED = {
    "attention": {"repeat", "batch", "chunks_of_1", "chunks_of_17"},
    "varlen_attention": {"repeat", "batch", "order", "chunks_of_1", "chunks_of_17"},
    "paged_attention": {"repeat", "batch", "order", "chunks_of_1", "chunks_of_17"},
    "mla_attention": {"repeat", "batch", "order", "chunks_of_1", "chunks_of_17"},
    "attention_backward": {"repeat", "batch"},
    "varlen_attention_backward": {"repeat", "batch", "order"},
}


def test_every_op_with_the_option_is_asked() -> None:
    """Alone, among others, at another place, in chunks of 1 and 17, and whole."""
    assert set(ASKED) == {name for name, op in TABLE.items() if "batch_invariant" in op.vocabulary.feature_names}
    for op, variations in ASKED.items():
        asked = [case for case in OPS[op].cases() if case.options.get("deterministic") == "batch"]
        assert {name for case in asked for name in case.variations} == variations
        assert all("batch_invariant" in OPS[op].words(case) for case in asked)
        assert max(case.shape["batch"] for case in asked) == (3 if op == "attention_backward" else 7)


def test_a_right_backend_passes() -> None:
    judged = Target("reference", "cpu", "cpu", UNDECLARED, execute, "stand-in")
    for name in {witness(impostor, "float32").id for impostor in IMPOSTORS}:
        result = judge(CASES[name], judged)
        assert result.status == "PASS", result.message
        assert {f"{each}.bits" for each in CASES[name].variations} <= {check.name for check in result.checks}


def test_chunks_are_every_query_once() -> None:
    starts = [0, 5, 5, 22]
    for size, calls in ((1, 17), (17, 1), (4, 5)):
        every = list(rows_of(starts, size))
        assert len(every) == calls
        assert all(row.stop - row.start <= size for rows in every for row in rows)
        assert sorted(i for rows in every for row in rows for i in range(row.start, row.stop)) == list(range(22))


def test_chunks_of_a_call_whose_parts_are_others_are_refused() -> None:
    for op in PACKED:
        case = next(case for case in OPS[op].cases() if not case.options.get("causal") and case.shape["seqlen_q"] > 1)
        call = OPS[op].call(case, OPS[op].problem(case), "cpu")
        with pytest.raises(ValueError, match="chunks need a causal call"):
            OPS[op].vary("chunks_of_17", case, None, call, "cpu")


@pytest.mark.extended
def test_the_splits_are_right_up_to_rounding() -> None:
    """So it is the bits that find them."""
    for impostor in IMPOSTORS:
        case = witness(impostor, "float32")
        op = OPS[case.op]
        call = op.call(case, op.problem(case), "cpu")
        with impostor.open() as run:
            got = call.run("reference", run)
        for name, want in call.run("reference", execute).items():
            torch.testing.assert_close(got[name], want, rtol=1e-5, atol=1e-5)
