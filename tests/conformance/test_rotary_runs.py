"""apply_rotary in the suite: how a call is judged, and what a run and its report are of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
import pytest
import torch
from xattn_conformance.case import DTYPES, Case
from xattn_conformance.golden import manifest
from xattn_conformance.ops.apply_rotary import problem
from xattn_conformance.ops.registry import OPS
from xattn_conformance.profiles.schema import parse
from xattn_conformance.reports.claims import claims
from xattn_conformance.reports.verify import verify as verify_report
from xattn_conformance.result import SCHEMA, SUITE, Canary, CaseResult, Report
from xattn_conformance.running.environment import here
from xattn_conformance.running.judge import judge
from xattn_conformance.running.selection import select, served
from xattn_conformance.running.target import Target
from xattn_reference.apply_rotary import apply_rotary

import xattn
from xattn.dispatch.registry import registry

OP = OPS["apply_rotary"]
SMALL = [case for case in OP.cases() if case.shape["seqlen_q"] <= 130]
CORE = [case for case in SMALL if case.level == "core"]
PROFILE = 'schema = 1\nbackend = "reference"\nhardware = ["cpu"]\n'


def target(execute: Any) -> Target:
    return Target("reference", "cpu", "cpu", parse(PROFILE), execute, "hardware")


def public(op: str, given: Mapping[str, Any], backend: str) -> Any:
    return getattr(xattn, op)(**given, backend=backend)


def small(**wanted: Any) -> Case:
    varied = [case for case in SMALL if case.variations]
    return next(case for case in varied if all(case.options.get(name) == value for name, value in wanted.items()))


@pytest.mark.parametrize(
    "case",
    [small(), small(batched=True, interleaved=True), small(alone=True), small(rotary_dim=16)],
    ids=lambda c: c.id,
)
def test_the_reference_passes(case: Case) -> None:
    result = judge(case, target(public))
    assert result.status == "PASS", result.message + result.detail
    assert {name.partition(":")[0] for name in (c.name for c in result.checks) if ":" in name} | {
        c.name.partition(".")[0] for c in result.checks if c.name == "repeat.bits"
    } == set(case.variations)


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        (lambda q, k: [q, k], "returned list, want a tuple of 2"),
        (lambda q, k: (q, k, q), "returned tuple, want a tuple of 2"),
        (lambda q, k: (q, None), "returned NoneType in a tuple, want a tensor"),
        (lambda q, k: q, "returned Tensor, want a tuple of 2"),
    ],
)
def test_what_comes_back_is_a_pair_of_tensors(returned: Callable[..., Any], said: str) -> None:
    result = judge(CORE[0], target(lambda op, given, backend: returned(*public(op, given, backend))))
    assert result.status == "ERROR"
    assert said in result.message


def test_a_k_that_nobody_gave_stays_away() -> None:
    result = judge(small(alone=True), target(lambda op, given, backend: (public(op, given, backend)[0], given["q"])))
    assert result.status == "ERROR"
    assert "want None" in result.message


@pytest.mark.parametrize(
    ("spoil", "check"),
    [
        (lambda q, k: (q.transpose(1, 2).contiguous().transpose(1, 2), k), "out.contiguous"),
        (lambda q, k: (q, k.transpose(1, 2).contiguous().transpose(1, 2)), "out_k.contiguous"),
        (lambda q, k: (q.double(), k), "out.dtype"),
        (lambda q, k: (q, k[:, :, :1]), "out_k.shape"),
    ],
)
def test_layouts_are_looked_at(spoil: Callable[..., Any], check: str) -> None:
    result = judge(CORE[0], target(lambda op, given, backend: spoil(*public(op, given, backend))))
    assert check in {each.name for each in result.checks if not each.ok}


def test_a_kernel_that_writes_in_place_fails() -> None:
    def execute(op: str, given: Mapping[str, Any], backend: str) -> Any:
        q, k = public(op, given, backend)
        given["q"].copy_(q)
        return given["q"], k

    result = judge(CORE[0], target(execute))
    assert "inputs.written" in {each.name for each in result.checks if not each.ok}


def test_an_ignored_knob_fails() -> None:
    (knob, *_) = OP.knob_cases()
    assert judge(knob, target(public)).status == "PASS"
    result = judge(knob, target(lambda op, given, backend: public(op, {**given, "interleaved": False}, backend)))
    assert "knob.ignored" in {each.name for each in result.checks if not each.ok}


def test_a_wrong_gradient_fails() -> None:
    """A backward that turns the way of the input, in a whole judgement."""

    class Forward(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, interleaved: bool) -> torch.Tensor:
            ctx.save_for_backward(cos, sin)
            ctx.interleaved = interleaved
            return apply_rotary(x, None, cos, sin, interleaved)[0]

        @staticmethod
        def backward(ctx: Any, dx: torch.Tensor) -> Any:
            cos, sin = ctx.saved_tensors
            return apply_rotary(dx, None, cos, sin, ctx.interleaved)[0], None, None, None

    def execute(op: str, given: Mapping[str, Any], backend: str) -> Any:
        def rotated(x: torch.Tensor | None) -> Any:
            tables = given["cos"], given["sin"], given["interleaved"]
            return None if x is None else Forward.apply(x, *tables)  # type: ignore[no-untyped-call]

        return rotated(given["q"]), rotated(given["k"])

    case = next(case for case in SMALL if case.grads == ("q", "k") and case.dtype == "bfloat16")
    failed = {check.name for check in judge(case, target(execute)).checks if not check.ok}
    assert {"dq.zmax", "dk.zmax"} <= failed
    assert not {"out.zmax", "out_k.zmax"} & failed


def test_a_run_is_of_the_ops_that_the_backend_has() -> None:
    assert served("reference") == tuple(OPS)
    assert served("sdpa") == tuple(name for name in OPS if name not in ("merge_attention", "hstu_attention"))
    everything = Counter(case.op for case in select("full", DTYPES))
    small = {name: [case for case in op.cases() if case.level != "large"] for name, op in OPS.items()}
    assert everything == {name: len(small[name]) + len(op.knob_cases()) for name, op in OPS.items()}
    assert {case.op for case in select("full", DTYPES, "*", served("sdpa"))} == set(served("sdpa"))
    assert select("core", DTYPES, "merge_attention/*", served("sdpa")) == []


def test_a_backend_without_the_op_says_so() -> None:
    entry = registry().entries["aiter-triton"]
    call = OP.call(CORE[0], problem.make(CORE[0]), "cpu")
    (reason,) = OP.explain(call, entry.name).reasons
    assert (reason.code, reason.got) == ("op", "apply_rotary")


def made_report(ops: tuple[str, ...], results: list[CaseResult]) -> Report:
    canaries = tuple(
        Canary(name=name, case="", caught_by="out.zmax", value=99.0, limit=8.0) for name in ("zero", "dsinks-zero")
    )
    return Report(
        schema=SCHEMA, suite=SUITE, backend="reference", device="cpu", level="core", dtypes=("float32",),
        selection="apply_rotary/*", started="2026-01-01T00:00:00+00:00", seconds=1.0, provenance="hardware",
        goldens=manifest.manifest_digest(), invalid="", environment={**here(), "device": {"kind": "cpu"}},
        profile=PROFILE, profile_source="", canaries=canaries, cases=tuple(results), ops=ops,
    )  # fmt: skip


@pytest.fixture(scope="module")
def results() -> list[CaseResult]:
    torch.set_num_threads(1)
    chosen = select("core", ["float32"], "apply_rotary/*")
    return [judge(case, target(public)) for case in chosen]


def test_a_report_verifies_and_not_without_its_cases(results: list[CaseResult]) -> None:
    ops = ("attention", "apply_rotary")
    assert verify_report(made_report(ops, results)) == []
    assert verify_report(msgspec.json.decode(msgspec.json.encode(made_report(ops, results)), type=Report)) == []
    (missing,) = verify_report(made_report(ops, results[1:]))
    assert missing == f"1 cases of the run are missing: {results[0].id}"
    found = verify_report(made_report(("attention",), results))
    assert any("are not of the run" in problem_found for problem_found in found)
    assert verify_report(made_report(("attention", "rope"), results)) == [
        "its ops are attention, rope; the suite knows no rope"
    ]
    assert "each once" in verify_report(made_report((*ops, *ops), results))[0]
    assert "one or more" in verify_report(made_report((), results))[0]


@pytest.mark.parametrize("name", ["out_k.zmax", "out_k.contiguous", "strides:out_k.zrow", "out.exact", "repeat.bits"])
def test_a_report_that_leaves_a_check_out_does_not_verify(results: list[CaseResult], name: str) -> None:
    at = next(n for n, result in enumerate(results) if any(check.name == name for check in result.checks))
    kept = tuple(check for check in results[at].checks if check.name != name)
    spoiled = [*results[:at], msgspec.structs.replace(results[at], checks=kept), *results[at + 1 :]]
    said = verify_report(made_report(("attention", "apply_rotary"), spoiled))
    assert said
    assert all(results[at].id in each for each in said)


def test_other_inputs_do_not_verify(results: list[CaseResult]) -> None:
    spoiled = [msgspec.structs.replace(results[0], inputs="0" * 64), *results[1:]]
    (said,) = verify_report(made_report(("attention", "apply_rotary"), spoiled))
    assert "its inputs are" in said


def test_claims_are_by_op(results: list[CaseResult]) -> None:
    report = msgspec.structs.replace(made_report(("attention", "apply_rotary"), results), selection="*")
    assert claims(report) == [
        f"attention Core {SUITE} (float32 only): no claim, nothing was executed",
        f"apply_rotary Core {SUITE} (float32 only): {len(results)}/{len(results)}, 0 waivers; published inputs alone",
    ]


def test_every_option_and_both_styles_are_in_every_level() -> None:
    for dtype in DTYPES:
        core = [case for case in CORE if case.dtype == dtype]
        for interleaved in (False, True):
            chosen = [case for case in core if bool(case.options.get("interleaved")) is interleaved]
            assert {"rotary_dim", "batched", "table"} <= {name for case in chosen for name in case.options}
            assert any(case.shape["nheads_k"] == 1 for case in chosen)
            assert any(case.shape["nheads_k"] > case.shape["nheads"] for case in chosen)
            assert any(case.shape["seqlen_q"] == 1 for case in chosen)
            assert {"far", "free", "positions"} <= {case.family for case in chosen}
            assert {name for case in chosen for name in case.variations} >= {"repeat", "batch", "strides"}
    full = [case for case in OP.cases() if case.grads]
    assert {case.grads for case in full} == {("q",), ("q", "k")}
