"""What a report lets its backend say of itself."""

from __future__ import annotations

from collections.abc import Sequence

from xattn_conformance.case import DTYPES, LEVELS
from xattn_conformance.profiles.schema import ProfileError, parse
from xattn_conformance.reports.tally import required, share, tally
from xattn_conformance.result import EVERY, CaseResult, Provenance, Report

# What each provenance means, in words.
PROVENANCE: dict[Provenance, str] = {
    "hardware": "on the vendor's hardware",
    "vendor code elsewhere": "on the vendor's code, but not on its hardware: no statement about the hardware",
    "stand-in": "on a stand-in: no statement about the hardware",
}
# From the strongest to the weakest.
STRENGTH: tuple[Provenance, ...] = ("hardware", "vendor code elsewhere", "stand-in")


def claims(report: Report) -> list[str]:
    """A sentence for each op and level up to the run's ("attention Core 1.0: 412/412, 0 waivers"), or one that says why
    there is none.

    Each counts the cases of that level alone: passed out of those that the backend had to execute, and of how many
    there are where it declined some: "38/38 of 537 cases". Waived cases are not passed.
    """
    if report.invalid:
        return [f"No claim: the run is invalid: {report.invalid.splitlines()[0]}"]
    if report.selection != EVERY:
        return [f"No claim: chosen cases, {report.selection!r}"]
    if not report.executed:
        return ["No claim: nothing was executed"]
    try:
        executor = parse(report.profile).executor
    except ProfileError as error:
        return [f"No claim: the profile in the report is refused: {str(error).splitlines()[0]}"]
    levels = LEVELS[: LEVELS.index(report.level) + 1]
    return [_claim(report, op, level, executor) for op in report.ops for level in levels]


def _claim(report: Report, op: str, level: str, executor: str) -> str:
    results = [result for result in report.cases if result.case.level == level and result.case.op == op]
    counts = tally(results)
    declined = f" ({counts['UNSUPPORTED']} declined as declared)" if counts["UNSUPPORTED"] else ""
    missing = [dtype for dtype in DTYPES if dtype not in report.dtypes]
    only = f" ({', '.join(report.dtypes)} only)" if missing else ""
    name = f"{op} {level.capitalize()} {report.suite}{only}"
    if not required(counts):
        return f"{name}: no claim, nothing was executed{declined}"
    failed = counts["FAIL"] + counts["ERROR"] + counts["INVALID"]
    parts = [f"{name}: {share(counts)}{' cases' if declined else ''}", _waivers(results)]
    parts += [f"{failed} failed"] if failed else []
    by = f", run by the executor {executor}" if executor else ""
    return ", ".join(parts) + declined + _provenance(report, results) + by


def _waivers(results: Sequence[CaseResult]) -> str:
    waived = [result for result in results if result.status == "WAIVED"]
    count = len({check.waiver for result in waived for check in result.checks if check.waiver})
    if not waived:
        return "0 waivers"
    return f"{count} waiver{'s' * (count != 1)} on {len(waived)} case{'s' * (len(waived) != 1)}"


def _provenance(report: Report, results: Sequence[CaseResult]) -> str:
    """The weakest provenance among the cases that had to be executed, and how many have it if not all do."""
    found = [result.provenance for result in results if result.status != "UNSUPPORTED"]
    weakest = max([report.provenance, *found], key=STRENGTH.index)
    if weakest == "hardware":
        return ""
    count = len(found) if weakest == report.provenance else found.count(weakest)
    return f", {f'{count} of them ' if count < len(found) else ''}{PROVENANCE[weakest]}"
