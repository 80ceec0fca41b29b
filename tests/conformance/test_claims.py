"""A claim says what was counted, never more."""

from __future__ import annotations

from typing import Any

import pytest
from conformance.reporting import PROFILE, TITLES, make_report, small_report
from msgspec.structs import replace
from xattn_conformance.ops.registry import OPS
from xattn_conformance.reports.claims import advice, claims
from xattn_conformance.reports.tally import ALL, matrix, share, tally
from xattn_conformance.result import SUITE, CaseResult, Provenance, Report

ELSEWHERE: Provenance = "vendor code elsewhere"


def clean(**changes: Any) -> Report:
    """The small report with its failures and its waiver made passes."""
    cases = []
    for result in small_report().cases:
        bad = result.status in ("FAIL", "ERROR", "WAIVED")
        checks = tuple(check for check in result.checks if check.ok and not check.waiver)
        cases.append(replace(result, status="PASS", checks=checks) if bad else result)
    return make_report(cases, **changes)


def test_all_passed() -> None:
    assert claims(clean()) == [
        f"attention Core {SUITE}: 36/36, 0 waivers; published inputs alone",
        f"attention Extended {SUITE}: 12/12 of 24 cases, 0 waivers (12 declined as declared); published inputs alone",
    ]


def test_a_claim_stops_at_the_level_of_the_run() -> None:
    core = [result for result in clean().cases if result.case.level == "core"]
    assert claims(make_report(core, level="core")) == [claims(clean())[0]]
    assert claims(clean(level="full"))[2:] == [f"attention Full {SUITE}: no claim, nothing was executed"]


def test_failures_and_waivers_are_not_passes() -> None:
    assert claims(small_report()) == [
        f"attention Core {SUITE}: 34/36, 1 waiver on 1 case, 1 failed; published inputs alone",
        f"attention Extended {SUITE}: 10/12 of 24 cases, 0 waivers, 2 failed (12 declined as declared); "
        "published inputs alone",
    ]


def test_one_waiver_on_two_cases_and_two_waivers_on_two() -> None:
    report = small_report()
    waived = next(result for result in report.cases if result.status == "WAIVED")
    again = replace(waived, id=f"{waived.id}-again")
    assert "1 waiver on 2 cases" in claims(make_report([*report.cases, again]))[0]
    renamed = tuple(replace(check, waiver="XW-2") if check.waiver else check for check in waived.checks)
    assert "2 waivers on 2 cases" in claims(make_report([*report.cases, replace(again, checks=renamed)]))[0]


@pytest.mark.parametrize(
    ("provenance", "words"),
    [
        ("stand-in", "on a stand-in: no statement about the hardware"),
        ("vendor code elsewhere", "no statement about the hardware"),
    ],
)
def test_what_did_not_run_on_the_hardware_says_so(provenance: Provenance, words: str) -> None:
    for claim in claims(clean(provenance=provenance)):
        assert f"{words};" in claim
        assert "of them" not in claim


def test_a_few_cases_on_a_stand_in_are_said_in_the_claim_of_their_level() -> None:
    cases: list[CaseResult] = list(clean().cases)
    first = next(index for index, result in enumerate(cases) if result.case.level == "core")
    cases[first] = replace(cases[first], provenance="stand-in")
    core, extended = claims(make_report(cases))
    counts = f"attention Core {SUITE}: 36/36, 0 waivers"
    assert core.startswith(f"{counts}, 1 of them on a stand-in: no statement about the hardware;")
    assert "stand-in" not in extended


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"invalid": "the goldens do not verify"}, "the goldens do not verify"),
        ({"selection": "*window*"}, "*window*"),
        ({"cases": ()}, "nothing was executed"),
        ({"cases": tuple(r for r in small_report().cases if r.status == "UNSUPPORTED")}, "nothing was executed"),
    ],
)
def test_what_counts_for_nothing_claims_nothing_and_says_why(changes: dict[str, Any], why: str) -> None:
    (said,) = claims(replace(clean(), **changes))
    assert said.startswith("No claim: ")
    assert why in said
    assert "/" not in said


def test_a_run_of_one_dtype_is_a_claim_about_that_dtype() -> None:
    report = clean()
    cases = tuple(result for result in report.cases if result.case.dtype == "float32")
    assert (
        claims(replace(report, dtypes=("float32",), cases=cases))[0]
        == f"attention Core {SUITE} (float32 only): 12/12, 0 waivers; published inputs alone"
    )


def test_a_claim_names_the_executor() -> None:
    profile = PROFILE.replace('hardware = ["cuda"]', 'hardware = ["cuda"]\nexecutor = "acme.graph:run"')
    assert claims(clean(profile=profile)) == [
        claim.replace(";", ", run by the executor acme.graph:run;") for claim in claims(clean())
    ]
    provenance: Provenance = "stand-in"
    for claim in claims(clean(profile=profile, provenance=provenance)):
        assert "no statement about the hardware, run by the executor acme.graph:run;" in claim


def test_a_profile_that_is_refused_claims_nothing() -> None:
    (said,) = claims(clean(profile="rtol = 1"))
    assert said.startswith("No claim: the profile in the report is refused")


def test_a_knob_is_no_pass_of_its_feature() -> None:
    results = list(small_report().cases)
    first = next(result for result in results if "window" in result.case.features and result.case.dtype == "float32")
    case = replace(first.case, title="knob.window")
    cells = matrix(make_report([*results, replace(first, id=case.id, case=case)]))
    before = matrix(small_report())
    assert cells["window", "float32"] == before["window", "float32"]
    assert cells[ALL, "float32"]["PASS"] == before[ALL, "float32"]["PASS"] + 1


def test_the_title_of_every_knob_says_that_it_is_one() -> None:
    """By their titles they are kept apart from the cases of a feature."""
    for op in OPS.values():
        assert all(case.title.startswith("knob.") for case in op.knob_cases())
        assert not any(case.title.startswith("knob.") for case in op.cases())


def test_a_share_of_little_shows_of_how_much() -> None:
    counts = tally(result for result in small_report().cases if result.case.dtype == "bfloat16")
    assert share(counts) == "13/16 of 20"
    assert share({**counts, "UNSUPPORTED": 0}) == "13/16"


def test_the_fixture_has_every_title() -> None:
    assert {result.case.title for result in small_report().cases} == {title for title, *_ in TITLES}


def test_a_claim_says_of_which_inputs_it_is() -> None:
    report = clean()
    again = [replace(result, case=replace(result.case, draw=99), id=f"{result.id}@99") for result in report.cases[:3]]
    twins = replace(report, cases=(*report.cases, *again), fresh=99)
    core, extended = claims(twins)
    assert core == f"attention Core {SUITE}: 36/36, 0 waivers; 3/3 on fresh inputs of seed 99"
    assert extended.endswith("; 3/3 on fresh inputs of seed 99")
    wrong = replace(twins, cases=(*report.cases, *again[1:], replace(again[0], status="FAIL")))
    assert claims(wrong)[0].endswith("; 2/3 on fresh inputs of seed 99")
    drawn = [replace(result, case=replace(result.case, draw=7)) for result in report.cases]
    assert claims(replace(report, cases=tuple(drawn), seed=7))[0] == (
        f"attention Core {SUITE} on inputs of seed 7: 36/36, 0 waivers"
    )


def test_a_claim_names_what_is_declared_and_not_tested() -> None:
    declared = {"attention": ("causal", "grad_qkv", "sinks", "softcap", "window")}
    core, extended = claims(clean(declared=declared))
    # The small report declines softcap everywhere, and has windows at its second level.
    assert core.endswith("; declared and not tested at this level: gradients of qkv, softcap, window")
    assert extended.endswith("; declared and not tested at this level: gradients of qkv, softcap")
    assert "not tested" not in claims(clean(declared={"attention": ("causal",)}))[0]


def test_a_backend_that_does_not_say_what_its_hardware_is_is_told_what_to_write() -> None:
    text = 'schema = 1\nbackend = "acme"\nhardware = []\n'
    without = clean(profile=text, profile_source="none: acme ships no acme.profile.toml", provenance=ELSEWHERE)
    assert advice(without) == (
        "Is cuda the hardware that acme is made for? Then say so in acme.profile.toml beside the module of its class: "
        'schema = 1, backend = "acme", hardware = ["cuda"].'
    )
    given = clean(profile=text, profile_source="xattn_acme: acme.profile.toml", provenance=ELSEWHERE)
    assert advice(given).endswith('Then say so in its profile: "cuda" in hardware.')
    assert advice(clean()) == ""
    emulated = text + 'executor = "acme.emulation:run"\n'
    assert advice(clean(profile=emulated, provenance=ELSEWHERE)) == ""
