"""What the suite says of itself: `list`, `verify-goldens`."""

from __future__ import annotations

import json as js
from typing import Annotated

import msgspec
import typer
from rich.text import Text

from xattn_conformance.case import DTYPES
from xattn_conformance.cli.terminal import INVALID, OK, err, out, stop
from xattn_conformance.golden.manifest import manifest_digest
from xattn_conformance.golden.verify import verify
from xattn_conformance.levels import LEVELS, Level
from xattn_conformance.running.selection import select


def list_cases(
    level: Annotated[str, typer.Option(help=f"{', '.join(LEVELS)}: each with all before it.")] = "full",
    case: Annotated[str, typer.Option(help="A pattern of case ids, as a shell's.")] = "*",
    json: Annotated[bool, typer.Option("--json", help="The cases as data, one JSON document.")] = False,
) -> None:
    """The ids of the cases, one a line."""
    cases = select(a_level(level), DTYPES, case)
    if not cases:
        stop(f"no case of level {level} matches {case!r}")
    if json:
        print(js.dumps(msgspec.to_builtins(cases), indent=1))
        return
    for each in cases:
        print(each.id)


def verify_goldens() -> None:
    """Whether inputs, stored goldens and oracles are what the suite was released with. Offline.

    Exits with 3 where they are not: no run counts then.
    """
    problems = verify()
    for problem in problems:
        err().print(Text.assemble(("Wrong: ", "bold red"), problem), soft_wrap=True)
    if not problems:
        out().print(Text(f"The goldens verify. Manifest {manifest_digest()}"))
    raise typer.Exit(INVALID if problems else OK)


def a_level(name: str) -> Level:
    level: Level | None = next((level for level in LEVELS if level == name), None)
    return level or stop(f"no level {name!r}: {', '.join(LEVELS)}")
