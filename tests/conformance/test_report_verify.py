"""Verification finds whatever was changed in a report that was honest, and nothing in one that is."""

from __future__ import annotations

import dataclasses
import datetime
import math
from collections.abc import Callable, Collection
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

import pytest
from conformance.reporting import GOLDENS, PROFILE, REASON, WAIVED, changed, first, limit, small_report, with_check
from msgspec.structs import replace
from xattn_conformance.case import SUITES, Case
from xattn_conformance.levels import LEVELS, Level
from xattn_conformance.ops.registry import OPS
from xattn_conformance.profiles.schema import parse
from xattn_conformance.reports import suite as suite_module
from xattn_conformance.reports import wanted
from xattn_conformance.reports.suite import Suite, installed
from xattn_conformance.reports.verify import verify
from xattn_conformance.result import SUITE, CaseResult, Check, Report, decode, encode
from xattn_conformance.tolerance.arithmetic import CANONICAL

SMALL = small_report()
SECOND = int(datetime.datetime.fromisoformat(SMALL.started).timestamp())
CASES = {result.id: result.case for result in SMALL.cases}
INPUTS = {result.id: result.inputs for result in SMALL.cases}


def chosen(level: Level, dtypes: Collection[str], pattern: str) -> list[Case]:
    """The suite that the small report is of."""
    levels = LEVELS[: LEVELS.index(level) + 1]
    every = [case for case in CASES.values() if case.level in levels and case.dtype in dtypes]
    return [case for case in every if fnmatchcase(case.id, pattern)]


# Profiles are tried on wrong kernels in a test of its own.
SUITE_1 = Suite(
    versions=SUITES,
    goldens=GOLDENS,
    select=chosen,
    fresh=lambda passed, seed: [replace(case, draw=seed) for case in list(passed)[:2]],
    limit=limit,
    inputs=lambda case: INPUTS.get(case.id),
    refusals=lambda *_: [],
    judged=lambda *_: True,
    counts=lambda *_: (2048.0,),
    mutants=frozenset({"zero", "window + 1", "scale 2"}),
    knobs=frozenset(),
)


def test_an_honest_report_verifies_as_written_and_as_read() -> None:
    assert verify(SMALL, SUITE_1) == []
    assert verify(decode(encode(SMALL)), SUITE_1) == []


def test_a_report_of_an_earlier_suite_is_held_to_the_cases_of_then() -> None:
    later = replace(PASSED.case, title="later", since="1.1")
    suite = dataclasses.replace(SUITE_1, select=lambda *asked: [*chosen(*asked), later])
    then = {version: replace(SMALL, suite=version, environment=here(suite=version)) for version in ("1.0", "1.1")}
    assert verify(then["1.0"], suite) == []
    assert verify(then["1.1"], suite) == [f"1 cases of the run are missing: {later.id}"]


def test_the_fresh_cases_of_a_report_are_those_that_follow_from_what_passed() -> None:
    suite = dataclasses.replace(SUITE_1, inputs=lambda case: INPUTS.get(case.published.id))
    passed = [result for result in SMALL.cases if result.status == "PASS"][:2]
    again = [replace(r, case=replace(r.case, draw=SECOND), id=f"{r.id}@{SECOND}") for r in passed]
    report = replace(SMALL, fresh=SECOND, cases=(*SMALL.cases, *again))
    assert verify(report, suite) == []
    assert "1 cases of the run are missing" in verify(replace(report, cases=report.cases[:-1]), suite)[0]
    assert "2 cases of the run are missing" in verify(replace(report, fresh=SECOND - 1), suite)[0]
    assert "2 cases are not of the run" in verify(replace(report, fresh=0), suite)[0]


def test_a_report_of_another_seed_is_held_to_its_inputs() -> None:
    suite = dataclasses.replace(SUITE_1, inputs=lambda case: INPUTS.get(case.published.id))
    drawn = tuple(replace(r, case=replace(r.case, draw=7), id=f"{r.id}@7") for r in SMALL.cases)
    assert verify(replace(SMALL, seed=7, cases=drawn), suite) == []
    assert "60 cases of the run are missing" in verify(replace(SMALL, seed=7), suite)[0]


def test_an_honest_report_of_a_part_verifies() -> None:
    part = tuple(result for result in SMALL.cases if "/needle" in result.id and result.case.dtype != "float32")
    report = replace(SMALL, selection="*/needle", dtypes=("float16", "bfloat16"), cases=part)
    assert verify(report, SUITE_1) == []
    assert "50 cases are not of the run" in verify(replace(report, cases=SMALL.cases), SUITE_1)[0]


def test_a_report_verifies_where_its_executor_is_not_installed() -> None:
    profile = PROFILE.replace("[arithmetic]", 'executor = "nowhere.to.be.found:run"\n[arithmetic]')
    assert profile != PROFILE
    assert verify(replace(SMALL, profile=profile), SUITE_1) == []


WITH_LSE = next(result for result in SMALL.cases if result.status == "PASS" and "return_lse" in result.case.features)
PASSED, FAILED, DECLINED, CRASHED = (first(SMALL, status) for status in ("PASS", "FAIL", "UNSUPPORTED", "ERROR"))
NAMELESS = PROFILE.replace(WAIVED, PASSED.id)
WAIVED_RESULT = first(SMALL, "WAIVED")
METRICS = ("zmax", "zrow", "gain", "zhead", "bias")
RULES = ("missing", "shape", "dtype", "device", "contiguous")
NULL, OTHER = SMALL.canaries


def without(*names: str, of: CaseResult = PASSED) -> Report:
    """The small report with checks of a case left out, by their names."""
    assert set(names) <= {check.name for check in of.checks}
    return changed(SMALL, of.id, checks=tuple(check for check in of.checks if check.name not in names))


def measured(name: str, **changes: Any) -> Report:
    """The small report with a check of a case changed."""
    return changed(SMALL, PASSED.id, checks=with_check(PASSED, name, **changes))


def here(**changes: Any) -> dict[str, Any]:
    """The environment of the small report, changed."""
    return {**SMALL.environment, **changes}


# A change of the small report, and what verification must say of it.
TAMPERED: dict[str, tuple[Callable[[], Report], str]] = {
    "a failure called a pass": (
        lambda: changed(SMALL, FAILED.id, status="PASS"),
        f"{FAILED.id}: PASS, but its checks say FAIL: out.zrow is 37.25, limit 4",
    ),
    "a failure called declined": (
        lambda: changed(SMALL, FAILED.id, status="UNSUPPORTED", reasons=({"code": "x"},)),
        "UNSUPPORTED, but its checks say FAIL",
    ),
    "a pass called a failure": (
        lambda: changed(SMALL, PASSED.id, status="FAIL", message="no"),
        f"{PASSED.id}: FAIL, but its checks say PASS",
    ),
    "a waived case called a pass": (
        lambda: changed(SMALL, WAIVED_RESULT.id, status="PASS"),
        "PASS, but its checks say WAIVED",
    ),
    "a looser limit": (
        lambda: changed(SMALL, FAILED.id, status="PASS", checks=with_check(FAILED, "out.zrow", limit=40.0)),
        "out.zrow was held to 40, it is held to 4",
    ),
    "a rule without tolerance made tolerant": (
        lambda: changed(SMALL, PASSED.id, checks=with_check(PASSED, "out.exact", value=3.0, limit=5.0)),
        "out.exact was held to 5, it is held to 0",
    ),
    "a waiver that the profile lacks": (
        lambda: changed(
            SMALL, FAILED.id, status="WAIVED", checks=with_check(FAILED, "out.zrow", limit=40.0, waiver="XW-9")
        ),
        "out.zrow was held to 40 by the waiver XW-9, it is held to 4",
    ),
    "a waiver's limit raised": (
        lambda: changed(SMALL, WAIVED, checks=with_check(WAIVED_RESULT, "out.zrow", limit=9.0)),
        "out.zrow was held to 9 by the waiver XW-1, it is held to 5.2 by the waiver XW-1",
    ),
    "more than the waiver lets pass": (
        lambda: changed(SMALL, WAIVED, checks=with_check(WAIVED_RESULT, "out.zrow", value=5.3)),
        f"{WAIVED}: WAIVED, but its checks say FAIL",
    ),
    "a stale waiver": (lambda: replace(SMALL, profile=NAMELESS), f"{PASSED.id}: PASS, but its checks say FAIL"),
    "an expired waiver": (
        lambda: replace(SMALL, started="2026-07-02T00:00:00+00:00"),
        "waiver XW-1 expired on 2026-07-01",
    ),
    "another device's waiver": (
        lambda: replace(SMALL, profile=PROFILE.replace('device = "cuda"', 'device = "cpu"')),
        "out.zrow was held to 5.2 by the waiver XW-1, it is held to 4",
    ),
    "a profile with a tolerance": (lambda: replace(SMALL, profile=PROFILE + "rtol = 1.0"), "its profile is refused"),
    "another backend's profile": (lambda: replace(SMALL, backend="other"), "its profile is that of acme"),
    "hardware that the profile does not name": (
        lambda: replace(SMALL, profile=PROFILE.replace('["cuda"]', "[]")),
        "its profile does not name 'cuda'",
    ),
    "a case on a stand-in": (
        lambda: replace(changed(SMALL, PASSED.id, provenance="hardware"), provenance="stand-in"),
        "was obtained on hardware, the run on stand-in",
    ),
    "no kind of device": (lambda: replace(SMALL, environment={}), "on which kind of device it ran"),
    "no date": (lambda: replace(SMALL, started="yesterday"), "it does not say when"),
    "a pass without checks": (lambda: changed(SMALL, PASSED.id, checks=()), "PASS without a single check"),
    "a comparison left out": (
        lambda: changed(SMALL, PASSED.id, checks=tuple(c for c in PASSED.checks if c.name != "out.exact")),
        f"{PASSED.id}: out was not compared: there is no out.exact",
    ),
    "no metric of out": (
        lambda: without(*(f"out.{metric}" for metric in METRICS)),
        "out was not compared: there is no out.zmax, out.zhead, out.bias, out.zrow, out.gain",
    ),
    "no gain of out": (lambda: without("out.gain"), "out was not compared: there is no out.gain"),
    "no zhead of lse": (lambda: without("lse.zhead", of=WITH_LSE), "lse was not compared: there is no lse.zhead"),
    "nothing of lse": (
        lambda: without(*(check.name for check in WITH_LSE.checks if check.name.startswith("lse.")), of=WITH_LSE),
        f"{WITH_LSE.id}: not looked at: lse.missing, lse.shape, lse.dtype, lse.device",
    ),
    **{
        f"no {name}": (partial(without, name), f"{PASSED.id}: not looked at: {name}")
        for name in (*(f"out.{rule}" for rule in RULES), "inputs.written", "results.kept")
    },
    "only knob.ignored": (
        lambda: changed(SMALL, PASSED.id, checks=(Check(name="knob.ignored", value=0.0, limit=0.0),)),
        "knob.ignored was looked at, and the case is of no knob",
    ),
    "a count below 1": (lambda: measured("out.bias", count=1e-12), "out.bias was taken over 1e-12 samples"),
    "an endless count": (lambda: measured("out.bias", count=math.inf), "out.bias was taken over inf samples"),
    "a count of 0": (lambda: measured("out.bias", count=0.0), "out.bias was taken over 0 samples"),
    "a negative value": (lambda: measured("out.bias", value=-1e9), "out.bias is -1e+09"),
    "other inputs": (lambda: changed(SMALL, PASSED.id, inputs="0" * 64), f"{PASSED.id}: its inputs are 0000"),
    "inputs not named": (lambda: changed(SMALL, DECLINED.id, inputs=""), "its inputs are not named"),
    "elements over the limit": (
        lambda: changed(SMALL, PASSED.id, histogram=(0,) * 20 + (999,)),
        "PASS, but in its histogram 999 elements are over the limit",
    ),
    **{
        f"a reason without its {part}": (
            partial(changed, SMALL, DECLINED.id, reasons=({**REASON, part: " "},)),
            f"{DECLINED.id}: UNSUPPORTED for a reason without {part}",
        )
        for part in ("code", "got", "want")
    },
    "a reason of a code alone": (
        lambda: changed(SMALL, DECLINED.id, reasons=({"code": "x"},)),
        "UNSUPPORTED for a reason without got, want",
    ),
    "a dtype twice": (lambda: replace(SMALL, dtypes=("float32", "float32")), "its dtypes are float32, float32"),
    "no such dtype": (lambda: replace(SMALL, dtypes=(*SMALL.dtypes, "int8")), "float32, float16, bfloat16, int8;"),
    "nothing compared": (
        lambda: changed(SMALL, PASSED.id, checks=tuple(c for c in PASSED.checks if c.name == "out.zmax")),
        f"{PASSED.id}: not looked at: out.missing, out.shape",
    ),
    "declined without a reason": (
        lambda: changed(SMALL, DECLINED.id, reasons=()),
        f"{DECLINED.id}: UNSUPPORTED without a reason",
    ),
    "an error without a word": (
        lambda: changed(SMALL, CRASHED.id, message=""),
        f"{CRASHED.id}: ERROR without a word why",
    ),
    "a case missing": (
        lambda: replace(SMALL, cases=SMALL.cases[1:]),
        f"1 cases of the run are missing: {SMALL.cases[0].id}",
    ),
    "a case twice": (
        lambda: replace(SMALL, cases=(*SMALL.cases, PASSED)),
        f"1 cases stand more than once: {PASSED.id}",
    ),
    "a case that the suite has not": (
        lambda: changed(SMALL, PASSED.id, id="attention/easy/float32/q1/normal"),
        f"1 cases are not of the run: suite {SUITE} has no such case there: attention/easy/float32/q1/normal",
    ),
    "another case under the id": (
        lambda: changed(SMALL, PASSED.id, case=replace(PASSED.case, family="ones")),
        f"{PASSED.id}: the case in it is not the suite's",
    ),
    "a case that cannot be made": (
        lambda: changed(SMALL, PASSED.id, checks=PASSED.checks[:1], case=replace(PASSED.case, op="x", shape={"b": 1})),
        f"{PASSED.id}: the case in it is not the suite's",
    ),
    "an easier case under the same id": (
        lambda: changed(SMALL, PASSED.id, case=replace(PASSED.case, options={"scale": 0.0})),
        f"{PASSED.id}: the case in it is not the suite's",
    ),
    "other goldens": (lambda: replace(SMALL, goldens="abc"), f"its goldens are abc, those installed are {GOLDENS}"),
    "one canary": (lambda: replace(SMALL, canaries=SMALL.canaries[:1]), "this one sent ['zero']"),
    "a canary twice": (lambda: replace(SMALL, canaries=(NULL, NULL)), "this one sent ['zero', 'zero']"),
    "no null kernel": (
        lambda: replace(SMALL, canaries=(OTHER, replace(OTHER, name="scale 2"))),
        "this one sent ['window + 1', 'scale 2']",
    ),
    "a canary that is none": (
        lambda: replace(SMALL, canaries=(NULL, replace(OTHER, name="mine"))),
        "the suite knows no wrong kernel 'mine'",
    ),
    "a canary that got through": (
        lambda: replace(SMALL, canaries=tuple(replace(c, caught_by="") for c in SMALL.canaries)),
        "the wrong kernel 'zero' was not caught",
    ),
    "a canary within its limit": (
        lambda: replace(SMALL, canaries=tuple(replace(c, value=1.0) for c in SMALL.canaries)),
        "the wrong kernel 'window + 1' was not caught",
    ),
    "nothing executed": (
        lambda: replace(SMALL, cases=tuple(r for r in SMALL.cases if r.status == "UNSUPPORTED")),
        "nothing was executed",
    ),
    "an invalid run": (lambda: replace(SMALL, invalid="why"), "the run is invalid, nothing in it counts: why"),
    "another suite": (lambda: replace(SMALL, suite="0.9"), "a report of suite 0.9"),
    "another schema": (lambda: replace(SMALL, schema=2), "a report of schema 2"),
}


@pytest.mark.parametrize("what", TAMPERED)
def test_verification_finds(what: str) -> None:
    make, problem = TAMPERED[what]
    found = verify(make(), SUITE_1)
    assert any(problem in line for line in found), found


def test_a_variation_must_have_been_looked_at_or_declined() -> None:
    case = replace(PASSED.case, variations=("repeat", "padding"))
    result = replace(PASSED, case=case)
    report = replace(SMALL, cases=(result,), selection=result.id)
    suite = dataclasses.replace(SUITE_1, select=lambda *_: [case])
    assert verify(report, suite) == [f"{case.id}: the variation {name} was not looked at" for name in case.variations]
    bits = Check(name="repeat.bits", value=0.0, limit=0.0)
    looked = replace(result, checks=(*result.checks, bits), left_out={"padding": ("seqlens_k",)})
    assert verify(replace(report, cases=(looked,)), suite) == []


def test_a_variation_of_the_same_request_is_never_left_out() -> None:
    case = replace(PASSED.case, variations=("repeat",))
    result = replace(PASSED, case=case, left_out={"repeat": ("x",)})
    suite = dataclasses.replace(SUITE_1, select=lambda *_: [case])
    (problem,) = verify(replace(SMALL, cases=(result,), selection=result.id), suite)
    assert "the variation repeat is the request of the case itself" in problem


def test_a_variation_is_compared_as_the_case_is() -> None:
    case = replace(PASSED.case, variations=("strides",))
    report = replace(SMALL, selection=PASSED.id)
    suite = dataclasses.replace(SUITE_1, select=lambda *_: [case])
    names = ("shape", "finite", "exact", *METRICS)
    own = {check.name: check for check in PASSED.checks}
    varied = [replace(own[f"out.{name}"], name=f"strides:out.{name}") for name in names]
    whole = replace(PASSED, case=case, checks=(*PASSED.checks, *varied))
    assert verify(replace(report, cases=(whole,)), suite) == []
    for left_out in varied:
        part = replace(whole, checks=tuple(check for check in whole.checks if check is not left_out))
        (problem,) = verify(replace(report, cases=(part,)), suite)
        assert left_out.name in problem


def test_a_case_without_anything_to_measure_is_not_asked_for_it() -> None:
    report = without(*(f"out.{metric}" for metric in METRICS))
    assert verify(report, dataclasses.replace(SUITE_1, judged=lambda *_: False)) == []


def test_a_case_of_a_knob_is_asked_for_that_as_well() -> None:
    suite = dataclasses.replace(SUITE_1, knobs=frozenset({PASSED.id}))
    assert "not looked at: knob.ignored" in verify(SMALL, suite)[0]
    knob = Check(name="knob.ignored", value=0.0, limit=0.0)
    assert verify(changed(SMALL, PASSED.id, checks=(*PASSED.checks, knob)), suite) == []


def test_a_refused_profile_is_said() -> None:
    suite = dataclasses.replace(SUITE_1, refusals=lambda profile, *_: [f"{profile.backend} is refused"])
    assert verify(SMALL, suite) == ["its profile is refused: acme is refused"]


DAY = datetime.date(2026, 5, 2)


def test_a_waiver_is_checked_as_on_the_day_of_the_run() -> None:
    own = next(iter(installed().select("core", ("float32",), "*/normal")))
    text = PROFILE.replace(WAIVED, own.id).replace("exp_bits = 20", "")
    refusals = installed().refusals
    assert refusals(parse(text), "cpu", ("float32",), ("attention",), DAY) == []
    (filed,) = refusals(parse(text), "cpu", ("float32",), ("attention",), DAY.replace(month=4, day=19))
    assert "yet to come" in filed
    (unknown,) = refusals(parse(PROFILE), "cpu", ("float32",), ("attention",), DAY)
    assert f"the suite has no case {WAIVED!r}" in unknown
    (check,) = refusals(parse(text.replace("out.zrow", "out.shape")), "cpu", ("float32",), ("attention",), DAY)
    assert "has no check 'out.shape'" in check


def test_a_profile_must_be_admitted_for_what_was_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is admitted has tests of its own."""
    profile = parse('schema = 1\nbackend = "acme"\nhardware = ["cuda"]\n')
    monkeypatch.setattr(suite_module, "admit", lambda *asked: [str(asked)])
    refused = installed().refusals(profile, "cuda", ("float16", "bfloat16"), ("apply_rotary",), DAY)
    assert refused == [str((profile, ["cuda"], ("float16", "bfloat16"), ("apply_rotary",)))]


def test_what_has_something_to_measure() -> None:
    judged = installed().judged
    (empty, *_) = installed().select("core", ("float32",), "*/lse/*/b2-q17-k0-*")
    (plain, *_) = installed().select("core", ("float32",), "*/lse/*/b2-q17-k65-*")
    assert not judged(empty, CANONICAL, "out")
    assert judged(plain, CANONICAL, "out")
    assert not judged(plain, CANONICAL, "probe")


def test_checks_of_a_variation_have_the_limits_of_their_metric() -> None:
    varied = Check(name="strides:out.zmax", value=9.0, limit=8.0, count=1)
    result = replace(PASSED, checks=(*PASSED.checks, varied), status="FAIL", message="strides:out.zmax is 9")
    report = replace(SMALL, cases=tuple(result if r is PASSED else r for r in SMALL.cases))
    assert verify(report, SUITE_1) == []


def test_the_gradients_of_a_real_case_are_asked_for_by_tensor() -> None:
    (case,) = {each.grads: each for each in OPS["attention"].cases() if each.grads == ("qkv", "bias", "lse")}.values()
    assert wanted._results(case) == ("out", "lse", "dq", "dk", "dv", "dbias")
