"""What `explain` says of measured times."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from cli.command_line import plain
from support import qkv
from tables.recorded import table_of, three, write

import xattn
from xattn.testing import fresh

CALL = "attention q=2,4,4,8 k=2,4,4,8 v=2,4,4,8"


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    with fresh(three()):
        table = table_of([(CALL, {"first": 1234.5, "second": 40.0, "third": 39.5})])
        monkeypatch.setenv("XATTN_TABLES", str(write(tmp_path / "table.json", table)))
    with fresh(three()):
        yield tmp_path / "table.json"


def test_explain_says_what_was_measured_where_and_when(file: Path) -> None:
    told = xattn.explain(*qkv())
    assert told.backend == "second"  # as fast as third, to 3 %, and of a higher priority
    assert [(each.name, each.p50_us) for each in told.candidates] == [
        ("second", 40.0), ("third", 39.5), ("first", 1234.5)
    ]  # fmt: skip
    assert told.measured is not None
    assert told.measured.exact
    assert told.measured.file == str(file)
    assert told.notes == ("third is faster by less than 3%, so priority decides",)
    lines = str(told).splitlines()
    assert "backend: second (Made), 40.0 us" in lines
    assert "first could (Made), 1,234 us" in lines
    (line,) = (line for line in lines if line.startswith("measured: eager time of a call of this kind, on "))
    assert f", 2026-11-26; {file}" in line
    assert told.as_dict()["measured"]["when"] == "2026-11-26T12:00:00"
    assert plain(told.as_dict()) == told.as_dict() | {"choice": "auto"}


def test_explain_says_that_a_call_was_only_near(file: Path) -> None:
    told = xattn.explain(*qkv(seqlen_q=8))
    assert told.measured is not None
    assert not told.measured.exact
    assert f"a call near this one, {CALL}, on" in str(told)
    far = xattn.explain(*qkv(seqlen_q=16))
    assert far.measured is None
    assert far.notes == ("no table has times of a call near this one, so priority decides",)


def test_without_tables_explain_says_nothing_of_them() -> None:
    with fresh(three()):
        told = xattn.explain(*qkv())
        assert told.measured is None
        assert told.notes == ()
        assert "measured" not in str(told)
