"""`xattn-conformance mutants`: whether the comparison catches wrong kernels and leaves right ones alone."""

from __future__ import annotations

import json as js
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from xattn_conformance.case import DTYPES, Case, scores
from xattn_conformance.cli.suite import a_level
from xattn_conformance.cli.terminal import FAILED, OK, err, out, stop
from xattn_conformance.levels import LEVELS
from xattn_conformance.mutants import render, table, witnesses
from xattn_conformance.mutants.page import page
from xattn_conformance.mutants.table import Outcome
from xattn_conformance.mutants.witnesses import SAMPLE, SCORES_MAX
from xattn_conformance.ops.registry import OPS
from xattn_conformance.running.selection import select


def mutants(
    level: Annotated[str, typer.Option(help=f"{', '.join(LEVELS)}: each with all before it.")] = "full",
    case: Annotated[str, typer.Option(help="A pattern of case ids, as a shell's.")] = "*",
    dtype: Annotated[list[str] | None, typer.Option(help=f"Of {', '.join(DTYPES)}; may be repeated.")] = None,
    sample: Annotated[
        bool, typer.Option("--sample", help=f"Of the cases the witnesses, and one in {SAMPLE} of the others.")
    ] = False,
    jobs: Annotated[int, typer.Option(min=1, help="Processes at once.")] = 2,
    markdown: Annotated[Path | None, typer.Option(help="Write the tables there, as docs/mutants.md has them.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Counts by mutant, dtype, family and check, on stdout.")] = False,
) -> None:
    """Every wrong kernel on the cases on which it can show, and every right one: who was caught, by what.

    On every case that is not too large, half an hour on two cores; impostors on their witnesses.

    Exits with 1 where a mutant lives in a dtype in which it is wrong, no case gives it a chance to show, or a right
    kernel fails.
    """
    dtypes = [name for name in DTYPES if name in (dtype or DTYPES)]
    if unknown := set(dtype or ()) - set(DTYPES):
        stop(f"no dtype {min(unknown)!r} in the suite: {', '.join(DTYPES)}")
    # Knobs ask another thing.
    compared = {each.id for op in OPS.values() if op.mutants() for each in op.cases()}
    possible = [each for each in select(a_level(level), dtypes, case) if each.id in compared]
    small = [each for each in possible if scores(each) <= SCORES_MAX]
    cases = witnesses.sample(small) if sample else small
    if not cases:
        stop("no case is left")
    found = progressed("Mutants", table.run_mutants(cases, jobs=jobs), cases)
    posed = progressed("Impostors", witnesses.run_impostors(cases), cases)
    right = progressed("Right kernels", table.run_right(cases, jobs=jobs), cases)
    if markdown is not None:
        command = f"xattn-conformance mutants{' --sample' if sample else ''} --markdown {markdown}"
        markdown.write_text(page(found, posed, right, command, _described(cases, possible)), encoding="utf-8")
    if json:
        print(js.dumps(table.counted(found), indent=1))
    else:
        for shown in (*render.terminal(found), render.right_terminal(right)):
            out().print(shown)
    # A pattern or a level below the last leaves mutants without a case.
    missing = table.unshown(found, dtypes) if case == "*" and level == "full" else []
    alive = table.survivors([*found, *posed])
    for name, where in (*alive, *missing):
        err().print(Text.assemble(("Alive: ", "bold red"), f"{name} in {where}"), soft_wrap=True)
    wronged = [outcome for outcome in right if outcome.failed]
    for outcome in wronged:
        checks = ", ".join(outcome.failed)
        err().print(
            Text.assemble(("Wronged: ", "bold red"), f"{outcome.kernel} in {outcome.case}: {checks}"), soft_wrap=True
        )
    raise typer.Exit(FAILED if alive or missing or wronged else OK)


def progressed(what: str, found: Iterator[list[Outcome]], cases: Sequence[Case]) -> list[Outcome]:
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=err()) as progress:
        return [one for each in progress.track(found, total=len(cases), description=what) for one in each]


def _described(cases: Sequence[Case], possible: Sequence[Case]) -> str:
    levels = {level: sum(case.level == level for case in cases) for level in LEVELS}
    of_each = ", ".join(f"{count} of level {level}" for level, count in levels.items() if count)
    return f"{len(cases)} of {len(possible)} cases ({of_each}), up to {max(map(scores, cases)):,} scores"
