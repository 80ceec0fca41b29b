"""The commands of `xattn-conformance`."""

from __future__ import annotations

import typer

from xattn_conformance.cli.reports import compare, html, junit, verify
from xattn_conformance.cli.run import run
from xattn_conformance.cli.suite import list_cases, mutants, verify_goldens
from xattn_conformance.cli.terminal import EXIT_CODES

app = typer.Typer(
    help="Hold an attention backend to one set of golden outputs. Tolerances follow from what the backend declares.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    # A traceback out of here is a bug of the suite's: plain, and without the values of locals.
    pretty_exceptions_enable=False,
)
for name, command in {
    "run": run,
    "list": list_cases,
    "verify-goldens": verify_goldens,
    "mutants": mutants,
    "compare": compare,
    "verify": verify,
    "html": html,
    "junit": junit,
}.items():
    app.command(name, epilog=EXIT_CODES)(command)
