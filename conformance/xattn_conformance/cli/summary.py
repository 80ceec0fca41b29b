"""What a run says at its end, and of each failure on the way."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from xattn_conformance.reports.claims import advice, claims
from xattn_conformance.reports.tally import STATUSES, Counts, matrix, required, share, tally
from xattn_conformance.result import CaseResult, Report

_STYLES = {"FAIL": "bold red", "ERROR": "bold red", "INVALID": "bold red", "WAIVED": "yellow", "UNSUPPORTED": "dim"}


def failure(result: CaseResult) -> Text:
    """Status, case, what is wrong, and the command that shows it again."""
    head = Text.assemble((result.status, _STYLES.get(result.status, "green")), " ", result.id)
    lines = [head, Text(f"    {result.message}"), Text(f"    {result.reproduce}", style="dim")]
    return Text("\n").join(lines)


def summary(report: Report, written: Sequence[Path]) -> RenderableType:
    """Claims, counts, canaries, the matrix of features and dtypes, and where the report is."""
    parts: list[RenderableType] = [_head(report)]
    if report.cases:
        parts.append(_matrix(report))
    for canary in report.canaries:
        caught = f"caught by {canary.caught_by}" if canary.caught_by else "NOT CAUGHT"
        parts.append(Text(f"Canary {canary.name}: {caught}"))
    parts.append(_counts(report))
    if report.invalid:
        parts.append(Text.assemble(("INVALID: ", "bold red"), report.invalid))
    elif not report.executed:
        parts.append(Text("Nothing was executed: that is a failure.", style="bold red"))
    parts += [Text(claim, style="bold") for claim in claims(report)]
    if said := advice(report):
        parts.append(Text(said))
    parts += [Text(f"Written to {path}") for path in written]
    return Group(*parts)


def _head(report: Report) -> Text:
    device = report.environment.get("device", {})
    inputs = f", inputs of seed {report.seed}" if report.seed else f", fresh inputs of seed {report.fresh}"
    return Text.assemble(
        (report.backend, "bold"),
        f" on {report.device} ({device.get('name', 'unknown')}), level {report.level}",
        inputs if report.seed or report.fresh else "",
    )


def _counts(report: Report) -> Text:
    counts = tally(report.cases)
    found = [(f"{counts[status]} {status}", _STYLES.get(status, "green")) for status in STATUSES if counts[status]]
    return Text(", ").join([Text(*each) for each in found] + [Text(f"{report.seconds:.1f} s")])


def _matrix(report: Report) -> Table:
    cells = matrix(report)
    table = Table(box=box.SIMPLE_HEAD, title="Passed of those that had to be executed", title_justify="left")
    table.add_column("")
    for dtype in report.dtypes:
        table.add_column(dtype, justify="right")
    for row in dict.fromkeys(feature for feature, _ in cells):
        table.add_row(row, *(_cell(cells[row, dtype]) for dtype in report.dtypes))
    return table


def _cell(counts: Counts) -> Text:
    if not required(counts):
        return Text("declined" if counts["UNSUPPORTED"] else "-", style="dim")
    bad = counts["FAIL"] + counts["ERROR"] + counts["INVALID"]
    style = "bold red" if bad else "yellow" if counts["WAIVED"] else "green"
    return Text(share(counts), style=style)
