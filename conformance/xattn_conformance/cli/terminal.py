"""What every command shares: consoles, reports from files, exit codes."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

import typer
from rich.console import Console
from rich.text import Text

from xattn_conformance.result import Report, decode

OK, FAILED, USAGE, INVALID = 0, 1, 2, 3

# Typer sets what a blank line separates on lines of their own.
EXIT_CODES = """Exit codes

0  fine

1  the backend failed a case, or what was looked at is wrong

2  wrong usage: of an option, a backend or device that is not there, a file that is no report

3  the run is invalid: goldens that do not verify, a profile that is refused, a wrong kernel that was not caught"""


def out() -> Console:
    """Results: stdout."""
    return Console(highlight=False)


def err() -> Console:
    """Errors and progress: stderr."""
    return Console(stderr=True, highlight=False)


def stop(message: str, code: int = USAGE) -> NoReturn:
    """End with a message and no traceback."""
    err().print(Text.assemble(("Error: ", "bold red"), message), soft_wrap=True)
    raise typer.Exit(code)


def read(path: Path) -> Report:
    """The report in a file."""
    try:
        return decode(path.read_bytes())
    except OSError as error:
        return stop(f"{path}: {error.strerror}")
    except ValueError as error:
        return stop(f"{path}: {error}")
