"""The numbers that every page about a report shows: counts, the matrix of features and dtypes, nearness to a limit."""

from __future__ import annotations

import math
from collections.abc import Iterable

from xattn_conformance.result import CaseResult, Check, Report, Status

# In the order in which a reader wants to see them: what failed, what passed, what was not asked.
STATUSES: tuple[Status, ...] = ("FAIL", "ERROR", "INVALID", "WAIVED", "PASS", "UNSUPPORTED")

# The row of the matrix that every case is in.
ALL = "all cases"

Counts = dict[Status, int]


def tally(results: Iterable[CaseResult]) -> Counts:
    """How many results have each status."""
    counts: Counts = dict.fromkeys(STATUSES, 0)
    for result in results:
        counts[result.status] += 1
    return counts


def required(counts: Counts) -> int:
    """Cases that the backend had to execute: all that it did not decline as declared, whatever became of them."""
    return sum(counts.values()) - counts["UNSUPPORTED"]


def share(counts: Counts) -> str:
    """Passed of those that had to be executed, and of how many in all where some were declined: "38/38 of 537"."""
    of_all = f" of {sum(counts.values())}" if counts["UNSUPPORTED"] else ""
    return f"{counts['PASS']}/{required(counts)}{of_all}"


def matrix(report: Report) -> dict[tuple[str, str], Counts]:
    """Counts by (feature, dtype). A case counts in the row of each of its features and in ALL; one of a knob, which
    asks no more of a feature than that it does something, in ALL alone."""
    found = {feature for result in report.cases for feature in _features(result)}
    rows = [ALL, *(["plain"] if "plain" in found else []), *sorted(found - {"plain"})]
    cells: dict[tuple[str, str], Counts] = {(row, dtype): tally(()) for row in rows for dtype in report.dtypes}
    for result in report.cases:
        for row in (ALL, *_features(result)):
            cells[row, result.case.dtype][result.status] += 1
    return cells


def _features(result: CaseResult) -> tuple[str, ...]:
    return () if result.case.title.startswith("knob.") else result.case.features


def nearness(check: Check) -> float:
    """Value relative to limit: 1 is at the limit. inf for a broken rule without tolerance and for no number."""
    if check.value is None:
        return math.inf
    if check.limit == 0:
        return 0.0 if check.value <= 0 else math.inf
    return check.value / check.limit


def nearest(result: CaseResult) -> Check | None:
    """The check that is nearest to its limit or farthest over it; None where nothing was checked."""
    return max(result.checks, key=nearness, default=None)


def failing(result: CaseResult) -> list[Check]:
    return [check for check in result.checks if not check.ok]
