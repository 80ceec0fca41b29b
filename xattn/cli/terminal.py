"""What every command shares: consoles, JSON, exit codes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text
from typer.core import TyperCommand, TyperGroup

from xattn.errors import InvalidArgumentError, UnknownBackendError

OK, FAILED, USAGE = 0, 1, 2

# Typer sets what a blank line separates on lines of their own.
EXIT_CODES = """Exit codes

0  fine

1  no backend can serve the call, or a measurement failed

2  wrong usage: of an option, a call that contradicts the contract, an unknown backend"""


def out() -> Console:
    """Results: stdout."""
    return Console(highlight=False)


def err() -> Console:
    """Errors, spinners and progress: stderr."""
    return Console(stderr=True, highlight=False)


class Command(TyperCommand):
    """A command whose flags read `--causal`: they take no value, so none is named."""

    def get_params(self, ctx: Any) -> list[Any]:
        return without_values(super().get_params(ctx))


class Group(TyperGroup):
    """As Command, for what comes before a command's name."""

    def get_params(self, ctx: Any) -> list[Any]:
        return without_values(super().get_params(ctx))


def without_values(options: list[Any]) -> list[Any]:
    for option in options:
        if getattr(option, "is_flag", False):
            option.metavar = ""
    return options


def narrow_table(show_header: bool = True) -> Table:
    """A table with little between its columns: 80 of a terminal are few for what there is to say."""
    return Table(box=box.SIMPLE_HEAD, show_header=show_header, padding=(0, 1, 0, 0), pad_edge=False)


def print_json(document: Any) -> None:
    """One JSON document and nothing else on stdout."""
    print(json.dumps(document, indent=2))


@contextmanager
def usage_errors() -> Iterator[None]:
    """What the caller asked wrongly is a message and exit code 2, no traceback."""
    try:
        yield
    except (InvalidArgumentError, UnknownBackendError) as error:
        err().print(Text.assemble(("Error: ", "bold red"), str(error)), soft_wrap=True)
        raise typer.Exit(USAGE) from None
