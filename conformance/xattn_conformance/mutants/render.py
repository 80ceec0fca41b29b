"""The table of mutants for a terminal and for the documentation."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from rich.table import Table

from xattn_conformance.mutants.table import ANY, Outcome, survivors, table
from xattn_conformance.mutants.zoo import MUTANTS

# Metrics as columns: a check's name is a result's and a metric's; gradients share columns.
METRICS = ("out.hard", "out.zmax", "out.zrow", "out.zhead", "out.bias", "lse", "probe", "gradients")


def column_of(metric: str) -> str:
    """The column of METRICS that a check belongs to."""
    result, _, kind = metric.partition(".")
    if result in ("lse", "probe"):
        return result
    if result != "out":
        return "gradients"
    return "out.hard" if kind in ("finite", "exact") else metric


def rows(outcomes: Sequence[Outcome]) -> tuple[list[str], list[list[str]]]:
    """Header, then a line a mutant in the zoo's order: killed/total in all cases, by family, and by metric."""
    counted = table(outcomes).items()
    by_family = {(kernel, family): counts for (kernel, family, metric), counts in counted if metric == ANY}
    families = sorted({family for _, family in by_family})
    killed: dict[tuple[str, str], int] = defaultdict(int)
    totals: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for outcome in outcomes:
        totals[outcome.kernel][0] += bool(outcome.failed)
        totals[outcome.kernel][1] += 1
        for column in {column_of(name) for name in outcome.failed}:
            killed[outcome.kernel, column] += 1
    lines = []
    for name in [mutant.name for mutant in MUTANTS if mutant.name in totals]:
        total = totals[name][1]
        cells = [_fraction(by_family.get((name, family))) for family in families]
        metrics = [_fraction((killed[name, column], total)) for column in METRICS]
        lines.append([name, _fraction((totals[name][0], total)), *cells, *metrics])
    return ["mutant", "killed", *families, *METRICS], lines


def terminal(outcomes: Sequence[Outcome]) -> Table:
    """The same for rich; mutants that live are red."""
    header, lines = rows(outcomes)
    alive = {name for name, _ in survivors(outcomes)}
    shown = Table(title="Mutants: killed / cases on which they can show")
    for number, name in enumerate(header):
        shown.add_column(name, justify="left" if number == 0 else "right", no_wrap=number == 0)
    for line in lines:
        shown.add_row(*line, style="bold red" if line[0] in alive else None)
    return shown


def markdown(outcomes: Sequence[Outcome]) -> str:
    """The same for docs/, with what is wrong in each mutant."""
    header, lines = rows(outcomes)
    wrong = {mutant.name: mutant.wrong for mutant in MUTANTS}
    header = [header[0], "what is wrong", *header[1:]]
    text = [f"| {' | '.join(header)} |", f"|{'---|' * 2}{'--:|' * (len(header) - 2)}"]
    text += [f"| {line[0]} | {wrong[line[0]].replace('|', chr(92) + '|')} | {' | '.join(line[1:])} |" for line in lines]
    return "\n".join(text) + "\n"


def _fraction(counts: tuple[int, int] | None) -> str:
    return "" if counts is None else f"{counts[0]}/{counts[1]}"
