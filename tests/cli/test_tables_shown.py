"""What `xattn explain` and `xattn info` say of measured times."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cli.command_line import SMALL, Run
from tables.recorded import elsewhere, table_of, three, write

from xattn.testing import fresh

CALL = "attention q=2,4,4,8 k=2,4,4,8 v=2,4,4,8"


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    with fresh(three()):
        table = table_of([(CALL, {"first": 1234.5, "second": 40.0, "third": 39.5})])
        monkeypatch.setenv("XATTN_TABLES", str(write(tmp_path / "table.json", table)))
    with fresh(three()):
        yield tmp_path / "table.json"


def test_the_commands_say_it_too(file: Path, run: Run) -> None:
    shown = run("explain", *SMALL, columns=200).stdout
    assert "Measured: eager time of a call of this kind" in shown
    assert "1,234 us" in shown
    assert json.loads(run("explain", *SMALL, "--json").stdout)["measured"]["source"] == "user"
    shown = run("info", columns=200).stdout
    assert "Tables of measured times" in shown
    assert "1 kinds of call, eager time of first, second, third, on " in shown
    assert "XATTN_TABLES" in shown


def test_info_shows_that_a_table_is_stale(file: Path, run: Run) -> None:
    with fresh(three()):
        write(file, elsewhere(table_of([(CALL, {"first": 1.0})]), versions={"torch": "2.0.1"}))
    with fresh(three()):
        assert "no: torch 2.0.1 there," in run("info", columns=300).stdout
        assert "does not count: torch 2.0.1 there," in " ".join(run("explain", *SMALL, columns=300).stdout.split())
    file.write_text("{")
    with fresh(three()):
        assert "no, it cannot be read" in run("info", columns=300).stdout
