"""A table of what was found right, and how it was looked at: one row a feature, one column a report."""

from __future__ import annotations

from collections.abc import Sequence

from xattn_conformance.case import DTYPES
from xattn_conformance.reports.claims import PROVENANCE
from xattn_conformance.reports.tally import ALL, Counts, matrix, required, share, tally
from xattn_conformance.result import Report

_SHORT = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}


def support(named: Sequence[tuple[str, Report]]) -> str:
    """Markdown. named: reports with a short name for each.

    A cell is passed / had to run, and the dtypes it is of where the backend declines others.
    """
    cells = [matrix(report) for _, report in named]
    rows = sorted({row for found in cells for row, _ in found}, key=lambda row: (row != ALL, row != "plain", row))
    head = ["| | " + " | ".join(name for name, _ in named) + " |", "| --- |" + " --- |" * len(named)]
    body = [f"| {row} | " + " | ".join(_cell(found, row) for found in cells) + " |" for row in rows]
    return "\n".join([*head, *body, "", *(_legend(name, report) for name, report in named)])


def _cell(found: dict[tuple[str, str], Counts], row: str) -> str:
    by_dtype = {dtype: found[row, dtype] for dtype in DTYPES if (row, dtype) in found}
    served = {dtype: counts for dtype, counts in by_dtype.items() if required(counts)}
    if not served:
        return "declined" if any(sum(counts.values()) for counts in by_dtype.values()) else ""
    passed, ran = sum(counts["PASS"] for counts in served.values()), sum(map(required, served.values()))
    of = "" if len(served) == len(by_dtype) else " " + ", ".join(_SHORT[dtype] for dtype in served)
    return f"{passed}/{ran}{of}" if passed == ran else f"**{passed}/{ran}**{of}"


def _legend(name: str, report: Report) -> str:
    """What ran where, on whose code."""
    environment = report.environment
    place = f"{environment.get('device', {}).get('name', 'unknown')}, torch {environment.get('torch', 'unknown')}"
    told = [f"{key} {value}" for each in ("backend", "executor") for key, value in environment.get(each, {}).items()]
    passed = share(tally(report.cases))
    what = f"`{report.backend}`, {PROVENANCE[report.provenance]} ({'; '.join([place, *told])})"
    return f"- **{name}**: {what}. Level {report.level}: {passed}."
