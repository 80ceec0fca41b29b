"""A comparison on the terminal."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from xattn_conformance.reports.compare import Cell, Comparison, Pair
from xattn_conformance.reports.tally import Counts, required
from xattn_conformance.result import Status

COLOURS: dict[Status, str] = {
    "FAIL": "bold red",
    "ERROR": "bold red",
    "INVALID": "bold magenta",
    "WAIVED": "yellow",
    "UNSUPPORTED": "dim",
    "PASS": "green",
}


def side_by_side(comparison: Comparison) -> RenderableType:
    """Warnings first, then the cells, the cases whose status changed, and how near both come to their limits."""
    a, b = comparison.a, comparison.b
    lines = [Text(f"Warning: {warning}", style="bold yellow") for warning in comparison.warnings]
    lines += [
        Text(f"A  {a.name}, {a.provenance}, suite {a.suite}, {a.started}"),
        Text(f"B  {b.name}, {b.provenance}, suite {b.suite}, {b.started}"),
    ]
    parts: list[RenderableType] = [*lines, _cells(comparison.cells)]
    if comparison.changed:
        parts.append(_changes(comparison.changed))
    parts += [Text(line) for line in _summary(comparison)]
    return Group(*parts)


def _cells(cells: Iterable[Cell]) -> Table:
    """One line for each feature; "a | b" for each dtype, a cell that differs in bold."""
    cells = list(cells)
    dtypes = list(dict.fromkeys(cell.dtype for cell in cells))
    table = Table(title="Passed of the cases that had to run, A | B", title_justify="left", box=None)
    table.add_column("")
    for dtype in dtypes:
        table.add_column(dtype, justify="center")
    by_key = {(cell.feature, cell.dtype): cell for cell in cells}
    for feature in dict.fromkeys(cell.feature for cell in cells):
        found = [by_key.get((feature, dtype)) for dtype in dtypes]
        table.add_row(feature, *(Text("") if cell is None else _cell(cell) for cell in found))
    return table


def _cell(cell: Cell) -> Text:
    differs = cell.a != cell.b
    return Text(f"{_counts(cell.a)} | {_counts(cell.b)}", style="bold" if differs else "dim")


def _counts(counts: Counts | None) -> str:
    if not counts or not sum(counts.values()):
        return "-"
    return f"{counts['PASS']}/{required(counts)}" if required(counts) else "declined"


def _changes(pairs: Iterable[Pair]) -> Table:
    table = Table(title="Cases whose status differs", title_justify="left", box=None)
    for name in ("A", "B"):
        table.add_column(name)
    table.add_column("case", overflow="fold")
    for pair in pairs:
        table.add_row(Text(pair.a, style=COLOURS[pair.a]), Text(pair.b, style=COLOURS[pair.b]), Text(pair.id))
    return table


def _summary(comparison: Comparison) -> list[str]:
    lines = [
        f"{len(comparison.pairs)} cases in both, {len(comparison.changed)} with another status, "
        f"{comparison.bitwise} with bitwise equal outputs"
    ]
    ratios = sorted(
        ((pair.ratio, pair.id) for pair in comparison.pairs if pair.ratio is not None), key=lambda found: found[0]
    )
    if ratios:
        middle = ratios[len(ratios) // 2][0]
        lines.append(f"worst value relative to its limit, B / A: {middle:.3g} in the middle case")
        lines += [f"  {ratio:.3g} in {id_}" for ratio, id_ in (ratios[0], ratios[-1])]
    for side, only in (("A", comparison.only_a), ("B", comparison.only_b)):
        if only:
            more = f" and {len(only) - 3} more" if len(only) > 3 else ""
            lines.append(f"{len(only)} cases only in {side}: {', '.join(only[:3])}{more}")
    return lines
