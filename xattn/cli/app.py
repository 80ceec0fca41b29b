"""The commands of `xattn`."""

from __future__ import annotations

import typer

from xattn.cli.bench import bench
from xattn.cli.explain import explain
from xattn.cli.info import info
from xattn.cli.terminal import EXIT_CODES, Command, Group
from xattn.cli.tune import tune

app = typer.Typer(
    cls=Group,
    help="One attention call for every vendor's hardware: what is installed, who serves a call, and how fast.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    # A traceback out of here is a bug of xattn's: plain, and without the values of locals.
    pretty_exceptions_enable=False,
)
for command in (info, explain, bench, tune):
    app.command(cls=Command, epilog=EXIT_CODES)(command)
