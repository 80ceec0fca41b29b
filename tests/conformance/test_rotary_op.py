"""apply_rotary in the suite: the goldens against other ways to compute them, wrong kernels, and what a run is of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import mpmath
import msgspec
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from xattn.rotary import plain
from xattn_conformance.case import DTYPES, Case
from xattn_conformance.golden import inputs, manifest, verify
from xattn_conformance.inputs.formats import round_to
from xattn_conformance.ops.apply_rotary import cases, families, problem
from xattn_conformance.ops.apply_rotary import oracle as rotary
from xattn_conformance.ops.apply_rotary.problem import Rotary
from xattn_conformance.ops.registry import OPS
from xattn_conformance.profiles.schema import parse
from xattn_conformance.reports.claims import claims
from xattn_conformance.reports.verify import verify as verify_report
from xattn_conformance.result import SCHEMA, SUITE, Canary, CaseResult, Report
from xattn_conformance.running.environment import here
from xattn_conformance.running.judge import judge
from xattn_conformance.running.selection import select, served, size
from xattn_conformance.running.target import Target
from xattn_conformance.tolerance.arithmetic import CANONICAL
from xattn_conformance.tolerance.compare import compare

import xattn
from xattn.dispatch.registry import registry

OP = OPS["apply_rotary"]
SMALL = [case for case in OP.cases() if case.shape["seqlen_q"] <= 130]
CORE = [case for case in SMALL if case.level == "core"]
# Of every small case the hash of one dtype is looked at.
LOOKED_AT = next(case.id for case in sorted(CORE, key=size) if case.dtype == DTYPES[case.seed % len(DTYPES)])
PROFILE = 'schema = 1\nbackend = "reference"\nhardware = ["cpu"]\n'

Array = NDArray[np.float64]


# ---------------------------------------------------------------------------------------------------------------------
# Goldens and inputs
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", SMALL[::7], ids=lambda case: case.id)
def test_the_golden_is_the_product_of_complex_numbers(case: Case) -> None:
    made = problem.make(case)
    one, other = (way(made.q, made.cos, made.sin, made.interleaved) for way in (rotary.rotated, rotary.as_complex))
    np.testing.assert_allclose(one, other, rtol=1e-13, atol=1e-13 * np.abs(one).max(initial=0.0))


@pytest.mark.parametrize("interleaved", [False, True])
def test_the_golden_is_what_mpmath_says_of_one_token(interleaved: bool) -> None:
    """Angle by angle, pair by pair, with pairs written out."""
    x = np.arange(1.0, 9.0).reshape(1, 1, 1, 8)
    angles = [mpmath.mpf(1), mpmath.mpf("0.1"), mpmath.mpf("-2.5")]
    cos, sin = (np.array([[float(f(angle)) for angle in angles]]) for f in (mpmath.cos, mpmath.sin))
    got = rotary.rotated(x, cos, sin, interleaved).reshape(8)
    pairs = [(0, 1), (2, 3), (4, 5)] if interleaved else [(0, 3), (1, 4), (2, 5)]
    for (first, second), angle in zip(pairs, angles, strict=True):
        z = mpmath.mpc(first + 1, second + 1) * mpmath.expj(angle)
        assert abs(got[first] - z.real) < 1e-14
        assert abs(got[second] - z.imag) < 1e-14
    assert got[6:].tolist() == [7.0, 8.0]


@pytest.mark.parametrize("interleaved", [False, True])
def test_the_golden_gradient_is_the_derivative_of_the_golden(interleaved: bool) -> None:
    both = [case for case in OP.cases() if case.grads == ("q", "k")]
    case = next(case for case in both if bool(case.options.get("interleaved")) is interleaved)
    made = problem.make(case)
    assert made.dout is not None
    found = OP.expected(case, made, CANONICAL)["dq"].value.transpose(0, 2, 1, 3)
    # Linear: <dout, R e> is the gradient along e.
    step = np.random.default_rng(0).standard_normal(made.q.shape)
    along = (made.dout * rotary.rotated(step, made.cos, made.sin, interleaved)).sum()
    np.testing.assert_allclose((found * step).sum(), along, rtol=1e-12)


def test_positions_are_angles_that_grow_evenly() -> None:
    (case,) = [each for each in OP.cases() if each.id == "apply_rotary/plain/float32/b1-q130-h3-g3-d128/positions"]
    made = problem.make(case)
    angle = np.unwrap(np.arctan2(made.sin, made.cos), axis=0)
    # Frequencies above a half turn a position would not unwrap; these stay below.
    np.testing.assert_allclose(angle, np.arange(130)[:, None] * angle[1], rtol=1e-5, atol=2e-6)
    assert 0.9 < angle[1].max() < 1.0
    assert 1e-5 < angle[1].min() < 2e-4
    assert (np.diff(angle[1]) < 0).all()


def test_every_family_is_what_the_table_says() -> None:
    assert set(cases.table().families) == set(families.FAMILIES)
    shared = [case for case in SMALL if case.dtype == "float32" and "batched" not in case.options]
    made = {case.family: problem.make(case) for case in shared}
    for name in ("positions", "far", "quarters", "inverse"):
        np.testing.assert_allclose(made[name].cos ** 2 + made[name].sin ** 2, 1, rtol=3e-7)
    assert set(np.unique(made["quarters"].cos)) == {-1.0, 0.0, 1.0}
    assert np.abs(made["free"].cos ** 2 + made["free"].sin ** 2 - 1).max() > 1
    assert np.abs(made["outlier"].q).max() > 256
    back = made["inverse"]
    turned = rotary.rotated(back.q, back.cos, back.sin, back.interleaved)
    assert np.abs(turned).max() < 5  # the normal numbers that it was made from


def test_inputs_are_pinned_in_a_file_of_their_own() -> None:
    assert not [name for name in manifest.installed().inputs if name.startswith("apply_rotary/")]
    assert set(inputs.in_room(OP)) == {case.id for case in inputs.every_case(OP)}


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda kept: {**kept, LOOKED_AT: "0" * 64}, f"{LOOKED_AT}: its inputs, made here, have another sha256"),
        (lambda kept: {name: kept[name] for name in kept if name != LOOKED_AT}, f"do not have those of {LOOKED_AT}"),
        (lambda kept: "nonsense", "are damaged"),
        (lambda kept: None, "do not have those of"),
    ],
)
def test_goldens_that_do_not_verify_are_told(
    spoil: Callable[[dict[str, str]], Any], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    contents = spoil(dict(inputs.in_room(OP)))
    if contents is not None:
        (tmp_path / inputs.FILE).write_bytes(msgspec.json.encode(contents))
    monkeypatch.setattr(type(OP), "room", tmp_path)
    monkeypatch.setattr(inputs, "in_room", inputs.in_room.__wrapped__)
    assert said in " ".join(verify.verify())


# ---------------------------------------------------------------------------------------------------------------------
# Wrong kernels
# ---------------------------------------------------------------------------------------------------------------------

Kernel = Callable[[Rotary], dict[str, Array]]


def right(given: Rotary, wide: str = "float32") -> dict[str, Array]:
    """Out and out_k, every step rounded to `wide`, and the result to the dtype."""
    found = {"out": _turned(given.q, given, wide)}
    if given.k is not None:
        found["out_k"] = _turned(given.k, given, wide)
    return {name: round_to(value, given.dtype) for name, value in found.items()}


def _turned(x: Array, given: Rotary, wide: str) -> Array:
    def step(values: Array) -> Array:
        return round_to(values, wide)

    pairs = given.cos.shape[-1]
    first, second = rotary.places(pairs, given.interleaved)
    cos, sin = step(given.cos)[..., None, :], step(given.sin)[..., None, :]
    one, other, out = step(x[..., first]), step(x[..., second]), x.copy()
    out[..., first] = step(step(one * cos) - step(other * sin))
    out[..., second] = step(step(other * cos) + step(one * sin))
    return out


def _swapped(given: Rotary) -> dict[str, Array]:
    pairs = given.cos.shape[-1]
    first, second = rotary.places(pairs, given.interleaved)
    found = right(given)
    for name, value in found.items():
        out = value.copy()
        out[..., first], out[..., second] = value[..., second], value[..., first]
        found[name] = out
    return found


def _all_rotated(given: Rotary) -> dict[str, Array]:
    """Pairs of all of headdim, with the tables begun again where they end."""
    half = given.q.shape[-1] // 2
    cos, sin = (np.resize(np.moveaxis(table, -1, 0), (half, *table.shape[:-1])) for table in (given.cos, given.sin))
    return right(replace(given, cos=np.moveaxis(cos, 0, -1), sin=np.moveaxis(sin, 0, -1)))


def _tail_lost(given: Rotary) -> dict[str, Array]:
    found = right(given)
    for value in found.values():
        value[..., 2 * given.cos.shape[-1] :] = 0.0
    return found


def _moved(given: Rotary) -> dict[str, Array]:
    return right(replace(given, cos=np.roll(given.cos, -1, axis=-2), sin=np.roll(given.sin, -1, axis=-2)))


def _row_0(given: Rotary) -> dict[str, Array]:
    if given.cos.ndim == 3:
        given = replace(given, cos=given.cos[:1], sin=given.sin[:1])
    return right(given)


def _heads_of_q(given: Rotary) -> dict[str, Array]:
    """k's heads past the last one that q has are left alone, as by a loop over the fewer of both."""
    found = right(given)
    if given.k is not None:
        shared = min(given.q.shape[2], given.k.shape[2])
        found["out"][:, :, shared:] = given.q[:, :, shared:]
        found["out_k"][:, :, shared:] = given.k[:, :, shared:]
    return found


MUTANTS: dict[str, Kernel] = {
    "the sign of sin": lambda given: right(replace(given, sin=-given.sin)),
    "halves swapped": _swapped,
    "the other pairs": lambda given: right(replace(given, interleaved=not given.interleaved)),
    "what passes through is rotated": _all_rotated,
    "what passes through is lost": _tail_lost,
    "cos of the next position": lambda given: right(replace(given, cos=np.roll(given.cos, -1, axis=-2))),
    "cos and sin of the next position": _moved,
    "k is not rotated": lambda given: right(given) | ({} if given.k is None else {"out_k": given.k}),
    "q is not rotated": lambda given: right(given) | {"out": given.q},
    "the tables of batch row 0": _row_0,
    "bfloat16 inside": lambda given: right(given, "bfloat16"),
    "cos rounded to bfloat16": lambda given: right(replace(given, cos=round_to(given.cos, "bfloat16"))),
    "only as many heads as both have": _heads_of_q,
    "unit vectors made of the table": lambda given: right(
        replace(given, cos=given.cos / np.hypot(given.cos, given.sin), sin=given.sin / np.hypot(given.cos, given.sin))
    ),
}


def _failed(case: Case, kernel: Kernel) -> set[str]:
    made = problem.make(case)
    expected = OP.expected(case, made, CANONICAL)
    got = {name: np.transpose(value, (0, 2, 1, 3)) for name, value in kernel(made).items()}
    return {check.name for check in compare({name: expected[name] for name in got}, got).failed}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", MUTANTS)
def test_a_wrong_kernel_fails_a_core_case_in_every_dtype(name: str, dtype: str) -> None:
    assert any(_failed(case, MUTANTS[name]) for case in CORE if case.dtype == dtype), name


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_kernel_in_the_dtype_of_q_fails_in_that_dtype(dtype: str) -> None:
    """Rounded at every step instead of once, in both styles."""
    for interleaved in (False, True):
        chosen = [c for c in CORE if c.dtype == dtype and bool(c.options.get("interleaved")) is interleaved]
        assert any(_failed(case, lambda given: right(given, dtype)) for case in chosen)


@pytest.mark.parametrize("case", SMALL[::3], ids=lambda case: case.id)
def test_a_kernel_that_rounds_as_the_contract_says_passes(case: Case) -> None:
    assert not _failed(case, right)


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_rounds_nothing_must_be_exact(dtype: str) -> None:
    """Quarter turns and what passes through: the last bit of one element, and the case fails for it."""
    quarters = next(case for case in CORE if case.dtype == dtype and case.family == "quarters")
    partial = next(case for case in CORE if case.dtype == dtype and case.options.get("rotary_dim") == 16)
    for case, column in ((quarters, 0), (partial, 79)):

        def off(given: Rotary, column: int = column) -> dict[str, Array]:
            found = right(given)
            value = found["out"][0, 0, 0, column]
            found["out"][0, 0, 0, column] = value * (1 + 2.0 ** -{"float32": 22, "float16": 9, "bfloat16": 6}[dtype])
            return found

        assert not _failed(case, right)
        assert _failed(case, off) == {"out.exact"}


def test_a_wrong_gradient_fails() -> None:
    """A backward that turns the way of the input, in a whole judgement."""

    class Forward(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, interleaved: bool) -> torch.Tensor:
            ctx.save_for_backward(cos, sin)
            ctx.interleaved = interleaved
            return plain.apply(x, None, cos, sin, interleaved)[0]

        @staticmethod
        def backward(ctx: Any, dx: torch.Tensor) -> Any:
            return plain.apply(dx, None, *ctx.saved_tensors, ctx.interleaved)[0], None, None, None

    def execute(op: str, given: Mapping[str, Any], backend: str) -> Any:
        rest = (given["cos"], given["sin"], given["interleaved"])
        return tuple(None if given[name] is None else Forward.apply(given[name], *rest) for name in ("q", "k"))

    case = next(case for case in SMALL if case.grads == ("q", "k") and case.dtype == "bfloat16")
    failed = {check.name for check in judge(case, target(execute)).checks if not check.ok}
    assert {"dq.zmax", "dk.zmax"} <= failed
    assert not {"out.zmax", "out_k.zmax"} & failed


# ---------------------------------------------------------------------------------------------------------------------
# Judging
# ---------------------------------------------------------------------------------------------------------------------


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


# ---------------------------------------------------------------------------------------------------------------------
# Runs and reports
# ---------------------------------------------------------------------------------------------------------------------


def test_a_run_is_of_the_ops_that_the_backend_has() -> None:
    assert served("reference") == ("attention", "apply_rotary")
    assert served("sdpa") == ("attention",)
    everything = Counter(case.op for case in select("full", DTYPES))
    assert everything == {op: len(OPS[op].cases()) + len(OPS[op].knob_cases()) for op in ("attention", "apply_rotary")}
    assert {case.op for case in select("full", DTYPES, "*", served("sdpa"))} == {"attention"}
    assert select("core", DTYPES, "apply_rotary/*", served("sdpa")) == []


def test_a_backend_without_the_op_says_so() -> None:
    entry = registry().entries["sdpa"]
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
    (said,) = verify_report(made_report(("attention", "apply_rotary"), spoiled))
    assert results[at].id in said


def test_other_inputs_do_not_verify(results: list[CaseResult]) -> None:
    spoiled = [msgspec.structs.replace(results[0], inputs="0" * 64), *results[1:]]
    (said,) = verify_report(made_report(("attention", "apply_rotary"), spoiled))
    assert "its inputs are" in said


def test_claims_are_by_op(results: list[CaseResult]) -> None:
    report = msgspec.structs.replace(made_report(("attention", "apply_rotary"), results), selection="*")
    assert claims(report) == [
        "attention Core 1.0 (float32 only): no claim, nothing was executed",
        f"apply_rotary Core 1.0 (float32 only): {len(results)}/{len(results)}, 0 waivers",
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
            assert {name for case in chosen for name in case.variations} == {"repeat", "batch", "strides"}
    full = [case for case in OP.cases() if case.grads]
    assert {case.grads for case in full} == {("q",), ("q", "k")}
