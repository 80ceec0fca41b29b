"""JUnit XML: as a reader of JUnit sees it, nothing that failed or was left out looks like a pass."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest
from conformance.reporting import REASON, make_report, small_report
from msgspec.structs import replace
from xattn_conformance.reports.junit import junit
from xattn_conformance.result import SUITE, Report

# Attributes (required, optional) and children of JUnit's elements, after Jenkins' schema; properties of a test case are
# pytest's addition, which readers of JUnit know.
SCHEMA = {
    "testsuites": ({"tests", "failures", "errors"}, {"name", "time"}, {"testsuite"}),
    "testsuite": (
        {"name", "tests", "failures", "errors", "skipped", "time", "timestamp"},
        set(),
        {"properties", "testcase"},
    ),
    "testcase": (
        {"name", "classname", "time"},
        set(),
        {"properties", "skipped", "error", "failure", "system-out"},
    ),
    "properties": (set(), set(), {"property"}),
    "property": ({"name", "value"}, set(), set()),
    "failure": ({"message", "type"}, set(), set()),
    "error": ({"message", "type"}, set(), set()),
    "skipped": ({"message"}, set(), set()),
    "system-out": (set(), set(), set()),
}


def parsed(report: Report) -> ElementTree.Element:
    root = ElementTree.fromstring(junit(report))
    for element in root.iter():
        required, optional, children = SCHEMA[element.tag]
        assert required <= set(element.attrib) <= required | optional, element.tag
        assert {child.tag for child in element} <= children, element.tag
    return root


def of_status(root: ElementTree.Element, status: str) -> list[ElementTree.Element]:
    return [
        case
        for case in root.iter("testcase")
        if case.find(f"properties/property[@name='status'][@value='{status}']") is not None
    ]


def test_junit_counts_are_those_of_the_report() -> None:
    report = small_report()
    suite = parsed(report).find("testsuite")
    assert suite is not None
    counts = {name: int(suite.attrib[name]) for name in ("tests", "failures", "errors", "skipped")}
    assert counts == {"tests": 60, "failures": 2, "errors": 1, "skipped": 12}
    ids = {f"{case.attrib['classname']}/{case.attrib['name']}" for case in suite.iter("testcase")}
    assert ids == {result.id for result in report.cases}
    claim = suite.find("properties/property[@name='claim']")
    assert claim is not None
    assert claim.attrib["value"].startswith(f"attention Core {SUITE}: 34/36")


def test_junit_failure_holds_what_one_needs() -> None:
    case = of_status(parsed(small_report()), "FAIL")[0]
    failure = case.find("failure")
    assert failure is not None
    assert failure.text is not None
    assert failure.attrib["message"] == "out.zrow is 37.25, over its limit of 4"
    assert "out.zrow: 37.25, limit 4" in failure.text
    assert "worst: out[1, 3, 16, 5] is 0.53125, golden 0.498046875, sigma 0.00091" in failure.text
    assert f"xattn-conformance run --backend acme --device cuda --case '{case.attrib['classname']}/" in failure.text
    assert "out.zmax" not in failure.text  # it is within its limit


def test_junit_outcomes_of_the_other_statuses() -> None:
    root = parsed(small_report())
    (error,) = of_status(root, "ERROR")
    assert "RuntimeError: </script> & <b>" in (error.findtext("error") or "")
    (waived,) = of_status(root, "WAIVED")
    assert {child.tag for child in waived} == {"properties", "system-out"}
    assert "XW-1" in (waived.findtext("system-out") or "")
    skipped = of_status(root, "UNSUPPORTED")[0].find("skipped")
    assert skipped is not None
    assert skipped.attrib["message"] == f"softcap=50.0 (supported: off). {REASON['hint']}"
    assert all({child.tag for child in case} == {"properties"} for case in of_status(root, "PASS"))


def test_junit_fails_for_an_invalid_case() -> None:
    first, *rest = small_report().cases
    root = parsed(make_report([replace(first, status="INVALID", message="other inputs"), *rest]))
    (case,) = of_status(root, "INVALID")
    error = case.find("error")
    assert error is not None
    assert error.attrib == {"message": "other inputs", "type": "INVALID"}


@pytest.mark.parametrize(
    ("report", "why"),
    [
        (replace(small_report(), invalid="the goldens do not verify"), "the goldens do not verify"),
        (replace(small_report(), cases=()), "nothing was executed"),
    ],
)
def test_junit_of_a_run_that_counts_for_nothing_has_a_failure(report: Report, why: str) -> None:
    case = parsed(report).find("testsuite/testcase")
    assert case is not None
    failure = case.find("failure")
    assert case.attrib["classname"] == "run"
    assert failure is not None
    assert failure.attrib["message"] == why


def test_junit_survives_what_xml_cannot_hold() -> None:
    first, *rest = small_report().cases
    bad = replace(first, status="ERROR", message="\x1b[31mred\x00 \ud800 & < >", detail="line\x0bfeed\ttab")
    (case, *_) = of_status(parsed(make_report([bad, *rest])), "ERROR")
    error = case.find("error")
    assert error is not None
    assert re.fullmatch(r"\ufffd\[31mred\ufffd \ufffd & < >", error.attrib["message"])
    assert "line\ufffdfeed\ttab" in (error.text or "")
