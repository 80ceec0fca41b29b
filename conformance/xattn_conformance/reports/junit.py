"""The report as JUnit XML, as Jenkins and GitLab read it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from xml.etree import ElementTree

from xattn_conformance.reports.claims import claims
from xattn_conformance.reports.tally import failing
from xattn_conformance.result import CaseResult, Check, Report, Worst

# What XML 1.0 cannot hold, escaped or not; a kernel's message may (colours of a terminal, NUL).
_ILLEGAL = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def junit(report: Report) -> bytes:
    """One test case for each case, and one more, failing, for a run that is invalid or executed nothing.

    JUnit knows four outcomes. FAIL is a failure, ERROR and INVALID are errors, WAIVED passes and says so on its output,
    UNSUPPORTED is skipped with the backend's reasons. The property "status" holds the suite's own word.
    """
    root = ElementTree.Element("testsuites", name="xattn-conformance")
    suite = ElementTree.SubElement(root, "testsuite", name=f"{report.backend} on {report.device}")
    _properties(suite, [("provenance", report.provenance), *(("claim", claim) for claim in claims(report))])
    if problem := report.invalid or ("" if report.executed else "nothing was executed"):
        run = ElementTree.SubElement(suite, "testcase", classname="run", name="counts", time="0")
        ElementTree.SubElement(run, "failure", message=_clean(problem), type="INVALID").text = _clean(problem)
    for result in report.cases:
        _case(suite, result)
    outcomes = {name: str(len(suite.findall(f"testcase/{tag}"))) for name, tag in _OUTCOMES}
    suite.attrib |= {"tests": str(len(suite.findall("testcase"))), **outcomes, "time": f"{report.seconds:.3f}"}
    root.attrib |= {name: suite.attrib[name] for name in ("tests", "failures", "errors", "time")}
    suite.set("timestamp", report.started)
    ElementTree.indent(root)
    return bytes(ElementTree.tostring(root, encoding="utf-8", xml_declaration=True))


_OUTCOMES = (("failures", "failure"), ("errors", "error"), ("skipped", "skipped"))


def _case(suite: ElementTree.Element, result: CaseResult) -> None:
    op, title, name = result.id.split("/", 2)
    element = ElementTree.SubElement(
        suite, "testcase", classname=f"{op}/{title}", name=name, time=f"{result.seconds:.3f}"
    )
    waivers = sorted({check.waiver for check in result.checks if check.waiver})
    _properties(
        element,
        [
            ("status", result.status),
            ("provenance", result.provenance),
            ("kernel", result.kernel),
            *(("waiver", waiver) for waiver in waivers),
        ],
    )
    if result.status == "FAIL":
        _outcome(element, "failure", result)
    elif result.status in ("ERROR", "INVALID"):
        _outcome(element, "error", result)
    elif result.status == "UNSUPPORTED":
        ElementTree.SubElement(element, "skipped", message=_clean("; ".join(map(reason_text, result.reasons))))
    elif result.status == "WAIVED":
        ElementTree.SubElement(element, "system-out").text = _clean(f"WAIVED, not passed: {result.message}")


def _outcome(element: ElementTree.Element, tag: str, result: CaseResult) -> None:
    lines = [result.message, *map(check_text, failing(result))]
    lines += [worst_text(result.worst)] if result.worst else []
    lines += [f"reproduce: {result.reproduce}"] if result.reproduce else []
    lines += [result.detail] if result.detail else []
    outcome = ElementTree.SubElement(element, tag, message=_clean(result.message), type=result.status)
    outcome.text = _clean("\n".join(lines))


def _properties(element: ElementTree.Element, pairs: Iterable[tuple[str, str]]) -> None:
    properties = ElementTree.SubElement(element, "properties")
    for name, value in pairs:
        if value:
            ElementTree.SubElement(properties, "property", name=name, value=_clean(value))


def _clean(text: str) -> str:
    return _ILLEGAL.sub("\N{REPLACEMENT CHARACTER}", text)


def check_text(check: Check) -> str:
    value = "not finite" if check.value is None else f"{check.value:.6g}"
    return f"{check.name}: {value}, limit {check.limit:.6g}" + (f" ({check.waiver})" if check.waiver else "")


def worst_text(worst: Worst) -> str:
    where = ", ".join(map(str, worst.index))
    return f"worst: {worst.tensor}[{where}] is {worst.got}, golden {worst.want}, sigma {worst.sigma}"


def reason_text(reason: dict[str, str]) -> str:
    """As `xattn.reasons.Reason` prints itself."""
    text = f"{reason['code']}={reason['got']} (supported: {reason['want']})"
    return f"{text}. {reason['hint']}" if reason.get("hint") else text
