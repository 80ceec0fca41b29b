"""Verification finds whatever was changed in a report that was honest, and nothing in one that is."""

from __future__ import annotations

from collections.abc import Callable, Collection
from fnmatch import fnmatchcase

import pytest
from msgspec.structs import replace
from reporting import GOLDENS, PROFILE, WAIVED, changed, first, limit, small_report, with_check
from xattn_conformance.case import LEVELS, Case, Level
from xattn_conformance.reports.verify import Suite, verify
from xattn_conformance.result import Check, Report, decode, encode

SMALL = small_report()
CASES = {result.id: result.case for result in SMALL.cases}


def chosen(level: Level, dtypes: Collection[str], pattern: str) -> list[Case]:
    """The suite that the small report is of."""
    levels = LEVELS[: LEVELS.index(level) + 1]
    every = [case for case in CASES.values() if case.level in levels and case.dtype in dtypes]
    return [case for case in every if fnmatchcase(case.id, pattern)]


SUITE_1 = Suite("1.0", GOLDENS, chosen, limit)


def test_an_honest_report_verifies_as_written_and_as_read() -> None:
    assert verify(SMALL, SUITE_1) == []
    assert verify(decode(encode(SMALL)), SUITE_1) == []


def test_an_honest_report_of_a_part_verifies() -> None:
    part = tuple(result for result in SMALL.cases if "/needle" in result.id and result.case.dtype != "float32")
    report = replace(SMALL, selection="*/needle", dtypes=("float16", "bfloat16"), cases=part)
    assert verify(report, SUITE_1) == []
    assert "50 cases are not of the run" in verify(replace(report, cases=SMALL.cases), SUITE_1)[0]


PASSED, FAILED, DECLINED, CRASHED = (first(SMALL, status) for status in ("PASS", "FAIL", "UNSUPPORTED", "ERROR"))
NAMELESS = PROFILE.replace(WAIVED, PASSED.id)
WAIVED_RESULT = first(SMALL, "WAIVED")

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
        f"{PASSED.id}: out was not compared",
    ),
    "nothing compared": (
        lambda: changed(SMALL, PASSED.id, checks=tuple(c for c in PASSED.checks if c.name == "out.zmax")),
        f"{PASSED.id}: no result was looked at",
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
        "1 cases are not of the run: suite 1.0 has no such case there: attention/easy/float32/q1/normal",
    ),
    "another case under the id": (
        lambda: changed(SMALL, PASSED.id, case=replace(PASSED.case, family="ones")),
        f"{PASSED.id}: the case in it is attention/plain/float32/",
    ),
    "an easier case under the same id": (
        lambda: changed(SMALL, PASSED.id, case=replace(PASSED.case, options={"scale": 0.0})),
        f"{PASSED.id}: the case in it is not the suite's",
    ),
    "other goldens": (lambda: replace(SMALL, goldens="abc"), f"its goldens are abc, those installed are {GOLDENS}"),
    "one canary": (lambda: replace(SMALL, canaries=SMALL.canaries[:1]), "this one sent 1"),
    "a canary that got through": (
        lambda: replace(SMALL, canaries=tuple(replace(c, caught_by="") for c in SMALL.canaries)),
        "the wrong kernel 'zero output' was not caught",
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
    suite = Suite("1.0", GOLDENS, lambda *_: [case], limit)
    assert verify(report, suite) == [f"{case.id}: the variation {name} was not looked at" for name in case.variations]
    bits = Check(name="repeat.bits", value=0.0, limit=0.0)
    left_out = "the variation padding is left out: declined for seqlens_k"
    looked = replace(result, checks=(*result.checks, bits), message=left_out)
    assert verify(replace(report, cases=(looked,)), suite) == []


def test_checks_of_a_variation_have_the_limits_of_their_metric() -> None:
    varied = Check(name="strides:out.zmax", value=9.0, limit=8.0, count=1)
    result = replace(PASSED, checks=(*PASSED.checks, varied), status="FAIL", message="strides:out.zmax is 9")
    report = replace(SMALL, cases=tuple(result if r is PASSED else r for r in SMALL.cases))
    assert verify(report, SUITE_1) == []


@pytest.mark.parametrize("cut", [0, 1, 1000, -2])
def test_a_truncated_report_is_a_plain_message(cut: int) -> None:
    with pytest.raises(ValueError, match="not a whole conformance report"):
        decode(encode(SMALL)[:cut])
