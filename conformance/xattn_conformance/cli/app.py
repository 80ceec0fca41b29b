"""The commands of `xattn-conformance`."""

from __future__ import annotations

from collections.abc import Callable

import typer

from xattn.cli.terminal import Command, Group
from xattn_conformance.cli.alarms import false_alarms
from xattn_conformance.cli.mutants import mutants
from xattn_conformance.cli.reports import compare, html, junit, support, verify
from xattn_conformance.cli.run import run
from xattn_conformance.cli.suite import list_cases, verify_goldens
from xattn_conformance.cli.terminal import EXIT_CODES

app = typer.Typer(
    cls=Group,
    help="Hold an attention backend to one set of golden outputs. Tolerances follow from what the backend declares.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    # A traceback out of here is a bug of the suite's: plain, and without the values of locals.
    pretty_exceptions_enable=False,
)

COMMANDS: tuple[tuple[str, Callable[..., None]], ...] = (
    ("run", run),
    ("list", list_cases),
    ("verify-goldens", verify_goldens),
    ("mutants", mutants),
    ("false-alarms", false_alarms),
    ("compare", compare),
    ("verify", verify),
    ("support", support),
    ("html", html),
    ("junit", junit),
)
for name, command in COMMANDS:
    app.command(name, cls=Command, epilog=EXIT_CODES)(command)
