"""`xattn-conformance false-alarms`: how often right kernels fail on inputs that the limits were not made with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import msgspec
import typer
from rich.table import Table
from rich.text import Text

from xattn_conformance.case import DTYPES, Case, scores
from xattn_conformance.cli.mutants import progressed
from xattn_conformance.cli.suite import a_level
from xattn_conformance.cli.terminal import FAILED, OK, err, out, stop
from xattn_conformance.levels import LEVELS
from xattn_conformance.mutants import table
from xattn_conformance.mutants.render import grouped, nearest
from xattn_conformance.mutants.table import Outcome
from xattn_conformance.mutants.witnesses import SAMPLE, SCORES_MAX
from xattn_conformance.ops.registry import OPS
from xattn_conformance.running.selection import drawn, select


def false_alarms(
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds to draw the inputs with.")] = 1,
    first: Annotated[int, typer.Option(min=1, help="The first of them; the others follow.")] = 1,
    level: Annotated[str, typer.Option(help=f"{', '.join(LEVELS)}: each with all before it.")] = "full",
    case: Annotated[str, typer.Option(help="A pattern of case ids, as a shell's.")] = "*",
    sample: Annotated[
        bool, typer.Option("--sample", help=f"Of each seed one case in {SAMPLE}, of another seed others.")
    ] = False,
    jobs: Annotated[int, typer.Option(min=1, help="Processes at once.")] = 2,
) -> None:
    """Every right kernel of the suite on cases with other inputs than the published ones: how often one fails.

    Exits with 1 where one does.
    """
    compared = {each.id for op in OPS.values() if op.right_kernels() for each in op.cases()}
    possible = [each for each in select(a_level(level), DTYPES, case) if each.id in compared]
    small = [each for each in possible if scores(each) <= SCORES_MAX]
    cases = [other for seed in range(first, first + seeds) for other in _others(small, seed, sample)]
    if not cases:
        stop("no case is left")
    found = progressed("Right kernels", table.run_right(cases, jobs=jobs), cases)
    out().print(_shown(cases, found))
    failed = [outcome for outcome in found if outcome.failed]
    for outcome in failed:
        checks = ", ".join(outcome.failed)
        err().print(
            Text.assemble(("False alarm: ", "bold red"), f"{outcome.kernel} in {outcome.case}: {checks}"),
            soft_wrap=True,
        )
    out().print(Text(said(len(cases), len({outcome.case for outcome in failed}))), soft_wrap=True)
    raise typer.Exit(FAILED if failed else OK)


def said(cases: int, alarms: int) -> str:
    """The rate in words. Kernels share the inputs of a case, so cases are counted and not comparisons."""
    if alarms:
        return f"{alarms} of {cases} cases failed a right kernel: one in {cases / alarms:.0f}"
    # Where nothing was seen in n trials, 3 / n is the bound that holds in 95 of 100 times.
    return f"None of {cases} cases failed a right kernel: fewer than one in {max(cases // 3, 1)}, at 95 % confidence"


def _others(cases: Sequence[Case], seed: int, sample: bool) -> list[Case]:
    """The cases on the inputs of a seed, but for those that have the same inputs under every seed."""
    chosen = [each for each in cases if not sample or msgspec.structs.replace(each, draw=seed).seed % SAMPLE == 0]
    return [other for each in chosen if (other := drawn(each, seed))]


def _shown(cases: Sequence[Case], outcomes: Sequence[Outcome]) -> Table:
    shown = Table(title=Text("Right kernels on other inputs"), box=None, title_justify="left", padding=(0, 0, 0, 1))
    for name in ("op", "cases", "comparisons", "failed", "nearest to a limit"):
        shown.add_column(Text(name), justify="left" if name == "op" else "right")
    for op, some in grouped(outcomes, lambda outcome: outcome.case.partition("/")[0]).items():
        of_op = sum(each.op == op for each in cases)
        failed = sum(bool(outcome.failed) for outcome in some)
        shown.add_row(op, str(of_op), str(len(some)), str(failed), f"{nearest(some):.2f}")
    return shown
