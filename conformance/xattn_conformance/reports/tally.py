"""The numbers that every page about a report shows: counts, the matrix of features and dtypes, nearness to a limit."""

from __future__ import annotations

import math
from collections.abc import Iterable

from xattn_conformance.result import CaseResult, Check, Report, Status

# In the order in which a reader wants to see them.
STATUSES: tuple[Status, ...] = ("FAIL", "ERROR", "INVALID", "WAIVED", "UNSUPPORTED", "PASS")

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


def matrix(report: Report) -> dict[tuple[str, str], Counts]:
    """Counts by (feature, dtype). A case counts in the row of each of its features and in ALL."""
    features = sorted({feature for result in report.cases for feature in result.case.features} - {"plain"})
    rows = [ALL, *(["plain"] if any("plain" in result.case.features for result in report.cases) else []), *features]
    cells: dict[tuple[str, str], Counts] = {(row, dtype): tally(()) for row in rows for dtype in report.dtypes}
    for result in report.cases:
        for row in (ALL, *result.case.features):
            cells[row, result.case.dtype][result.status] += 1
    return cells


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
