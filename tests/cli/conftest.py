"""The fixture that runs a command."""

from __future__ import annotations

import pytest
from cli.command_line import Run
from typer.testing import CliRunner, Result

from xattn.cli.app import app


@pytest.fixture
def run() -> Run:
    """Run `xattn` with arguments on a terminal of so many columns."""

    def run(*arguments: str, columns: int = 100) -> Result:
        result = CliRunner().invoke(app, list(arguments), env={"COLUMNS": str(columns)})
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return run
