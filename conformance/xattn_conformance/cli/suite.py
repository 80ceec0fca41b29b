"""What the suite says of itself: `list`, `verify-goldens`, `mutants`."""

from __future__ import annotations

import json as js
from typing import Annotated

import msgspec
import typer
from rich.progress import Progress
from rich.text import Text

from xattn_conformance import ops
from xattn_conformance.case import DTYPES, LEVELS, Level
from xattn_conformance.cli.terminal import FAILED, INVALID, OK, err, out, stop
from xattn_conformance.golden import verify as goldens
from xattn_conformance.mutants import render, table
from xattn_conformance.mutants.witnesses import SCORES_MAX, scores
from xattn_conformance.running.selection import select


def list_cases(
    level: Annotated[str, typer.Option(help=f"{', '.join(LEVELS)}: each with all before it.")] = "full",
    case: Annotated[str, typer.Option(help="A pattern of case ids, as a shell's.")] = "*",
    json: Annotated[bool, typer.Option("--json", help="The cases as data, one JSON document.")] = False,
) -> None:
    """The ids of the cases, one a line."""
    cases = select(a_level(level), DTYPES, case)
    if json:
        print(js.dumps(msgspec.to_builtins(cases), indent=1))
        return
    for each in cases:
        print(each.id)


def verify_goldens() -> None:
    """Whether inputs, stored goldens and oracles are what the suite was released with. Offline.

    Exits with 3 where they are not: no run counts then.
    """
    problems = goldens.verify()
    for problem in problems:
        err().print(Text.assemble(("Wrong: ", "bold red"), problem), soft_wrap=True)
    if not problems:
        out().print(Text(f"The goldens verify. Manifest {goldens.manifest_digest()}"))
    raise typer.Exit(INVALID if problems else OK)


def mutants(
    level: Annotated[str, typer.Option(help=f"{', '.join(LEVELS)}: each with all before it.")] = "full",
    case: Annotated[str, typer.Option(help="A pattern of case ids, as a shell's.")] = "*",
    jobs: Annotated[int, typer.Option(min=1, help="Processes at once.")] = 2,
    markdown: Annotated[bool, typer.Option("--markdown", help="The table as Markdown.")] = False,
) -> None:
    """Every wrong kernel on every small case on which it can show: killed by what.

    Exits with 1 where one lives in a dtype in which it is wrong, or no case gives it a chance to show.
    """
    compared = known()
    cases = select(a_level(level), DTYPES, case)
    small = [each for each in cases if each.id in compared and scores(each) <= SCORES_MAX]
    with Progress(console=err()) as progress:
        found = progress.track(table.run_mutants(small, jobs=jobs), total=len(small), description="Mutants")
        outcomes = [outcome for each in found for outcome in each]
    if markdown:
        print(render.markdown(outcomes))
    else:
        out().print(render.terminal(outcomes))
    alive = table.survivors(outcomes) + (table.unshown(outcomes, DTYPES) if case == "*" else [])
    for name, dtype in alive:
        err().print(Text.assemble(("Alive: ", "bold red"), f"{name} in {dtype}"))
    raise typer.Exit(FAILED if alive else OK)


def known() -> frozenset[str]:
    """The ids of cases that compare results; knobs ask something else."""
    return frozenset(each.id for op in ops.OPS.values() for each in op.cases())


def a_level(name: str) -> Level:
    level: Level | None = next((level for level in LEVELS if level == name), None)
    return level or stop(f"no level {name!r}: {', '.join(LEVELS)}")
