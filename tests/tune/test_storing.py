"""A table's file is never harmed: not by another process, a full disk, or a run that ends half-way."""

from __future__ import annotations

import errno
import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from tables.recorded import elsewhere, table_of, three

from xattn.dispatch.tables.format import Row, Table, TableError, parse
from xattn.testing import fresh
from xattn.tune import storing

CALLS = [f"attention q={2**i},4,4,8 k={2**i},4,4,8 v={2**i},4,4,8" for i in range(12)]


@pytest.fixture
def table() -> Table:
    with fresh(three()):
        return table_of([(call, {"first": 2.0, "third": 1.0}) for call in CALLS])


@pytest.fixture
def empty(table: Table) -> Table:
    return replace(table, rows=())


def rows(path: Path) -> tuple[Row, ...]:
    return parse(json.loads(path.read_text())).rows


def test_rows_come_back_as_they_were(table: Table, empty: Table, tmp_path: Path) -> None:
    path = tmp_path / "new" / "table.json"
    for row in table.rows:
        storing.add(path, empty, row)
    assert parse(json.loads(path.read_text())) == table
    assert storing.stored(path, table.environment, table.mode) == table


def test_a_kind_that_is_measured_again_is_replaced(table: Table, empty: Table, tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    first, second = table.rows[:2]
    for row in (first, second, replace(first, when="2027-01-01T00:00:00")):
        storing.add(path, empty, row)
    assert [row.when for row in rows(path)] == [second.when, "2027-01-01T00:00:00"]


def test_many_at_once_lose_nothing(table: Table, empty: Table, tmp_path: Path) -> None:
    """Each has a file of its own open, as processes have."""
    path = tmp_path / "table.json"
    with ThreadPoolExecutor(len(table.rows)) as pool:
        list(pool.map(lambda row: storing.add(path, empty, row), table.rows))
    assert {row.kind for row in rows(path)} == {row.kind for row in table.rows}


@pytest.mark.parametrize("failing", ["os.fsync", "pathlib.Path.replace"])
def test_a_full_disk_leaves_what_was_there(
    failing: str, table: Table, empty: Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "table.json"
    storing.add(path, empty, table.rows[0])
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(failing, full)
    with pytest.raises(OSError, match="No space left"):
        storing.add(path, empty, table.rows[1])
    assert path.read_bytes() == before
    assert not list(tmp_path.glob("*.new"))


def test_an_interrupted_write_leaves_what_was_there(
    table: Table, empty: Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "table.json"
    storing.add(path, empty, table.rows[0])
    before = path.read_bytes()

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        storing.add(path, empty, table.rows[1])
    assert path.read_bytes() == before
    monkeypatch.undo()
    storing.add(path, empty, table.rows[1])
    assert len(rows(path)) == 2


def test_another_environments_table_and_a_foreign_file_are_not_touched(
    table: Table, empty: Table, tmp_path: Path
) -> None:
    path = tmp_path / "table.json"
    storing.add(path, elsewhere(empty, card="another"), table.rows[0])
    path_of_others = tmp_path / "notes.json"
    path_of_others.write_text('{"shopping": ["milk"]}')
    for file, error in ((path, storing.OtherTableError), (path_of_others, TableError)):
        before = file.read_bytes()
        with pytest.raises(error, match=str(file)):
            storing.add(file, empty, table.rows[1])
        assert file.read_bytes() == before
