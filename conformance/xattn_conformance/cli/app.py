"""The commands of `xattn-conformance`."""

from __future__ import annotations

import typer

from xattn_conformance.cli.mutants import mutants
from xattn_conformance.cli.reports import compare, html, junit, support, verify
from xattn_conformance.cli.run import run
from xattn_conformance.cli.suite import list_cases, verify_goldens
from xattn_conformance.cli.terminal import EXIT_CODES

app = typer.Typer(
    help="Hold an attention backend to one set of golden outputs. Tolerances follow from what the backend declares.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    # A traceback out of here is a bug of the suite's: plain, and without the values of locals.
    pretty_exceptions_enable=False,
)
app.command("run", epilog=EXIT_CODES)(run)
app.command("list", epilog=EXIT_CODES)(list_cases)
app.command("verify-goldens", epilog=EXIT_CODES)(verify_goldens)
app.command("mutants", epilog=EXIT_CODES)(mutants)
app.command("compare", epilog=EXIT_CODES)(compare)
app.command("verify", epilog=EXIT_CODES)(verify)
app.command("support", epilog=EXIT_CODES)(support)
app.command("html", epilog=EXIT_CODES)(html)
app.command("junit", epilog=EXIT_CODES)(junit)
