"""Tables that do not count, in whole or in part: said plainly, and the calls are served by priority."""

from __future__ import annotations

import ctypes
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support import backend_of, qkv
from tables.recorded import elsewhere, kernel, plugins, table_of, three, write

import xattn
from xattn.dispatch.tables.environment import _driver
from xattn.dispatch.tables.format import Table, as_document
from xattn.plugin import hookimpl
from xattn.testing import fresh

CALL = "attention q=2,4,4,8 k=2,4,4,8 v=2,4,4,8"
TIMES = {"first": 50.0, "second": 40.0, "third": 20.0}
Set = Callable[[object], None]


@pytest.fixture
def table() -> Table:
    with fresh(three()):
        return table_of([(CALL, TIMES)])


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Set:
    """Set XATTN_TABLES."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return lambda where: monkeypatch.setenv("XATTN_TABLES", str(where))


def serves() -> float:
    """Which of `three` served: 30, 20 or 10. By priority it is the first, 30."""
    out: torch.Tensor = xattn.attention(*qkv())
    return float(out.flatten()[0])


def text_of(value: Any) -> str:
    return json.dumps(value)


def notes() -> str:
    return "\n".join(xattn.explain(*qkv()).notes)


def test_a_good_table_counts(table: Table, tmp_path: Path, at: Set) -> None:
    at(write(tmp_path / "table.json", table))
    with fresh(three()):
        assert serves() == 10
        assert notes() == ""
        (told,) = xattn.info()["tables"]
        assert told["unused"] == told["problem"] == ""
        assert (told["kinds"], told["backends"]) == (1, ["first", "second", "third"])
        assert xattn.info()["problems"] == []


BROKEN = {
    "cut short": lambda good: text_of(good)[:-20],
    "empty": lambda good: "",
    "bytes": lambda good: b"\xff\xfe\x00",
    "nested": lambda good: "[" * 100_000,
    "a list": lambda good: "[]",
    "foreign": lambda good: '{"tactics": {"gemm": 3}}',
    "a newer format": lambda good: text_of({**good, "xattn_table": 2}),
    "no rows": lambda good: text_of({name: value for name, value in good.items() if name != "rows"}),
    "rows of text": lambda good: text_of({**good, "rows": ["fast"]}),
    "no kind": lambda good: text_of({**good, "rows": [{"times": {}}]}),
    "NaN": lambda good: text_of(good).replace("50.0", "NaN"),
    "infinite": lambda good: text_of(good).replace("50.0", "1e999"),
    "a huge number": lambda good: text_of(good).replace("50.0", "1" + "0" * 400),
    "negative": lambda good: text_of(good).replace("50.0", "-1"),
    "a bool": lambda good: text_of(good).replace("50.0", "true"),
    "a size of text": lambda good: text_of(good).replace('"headdim": 8', '"headdim": "8"'),
    "versions of numbers": lambda good: text_of({**good, "versions": {"torch": 2}}),
}


@pytest.mark.parametrize("broken", BROKEN.values(), ids=BROKEN)
def test_a_broken_table_is_named_and_no_more(
    broken: Callable[[Any], Any], table: Table, tmp_path: Path, at: Set
) -> None:
    file, content = tmp_path / "broken.json", broken(as_document(table))
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    at(file)
    with fresh(three()):
        assert serves() == 30
        (problem,) = [line for line in xattn.info()["problems"] if str(file) in line]
        assert problem in notes()
        assert len(problem.splitlines()) == 1
        assert len(problem) < len(str(file)) + 150


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="there is no file without an end here")
def test_a_file_without_an_end_is_not_read(at: Set) -> None:
    at("/dev/zero")
    with fresh(three()):
        assert serves() == 30
        assert "/dev/zero: is no file" in notes()


def test_a_broken_table_takes_no_other_with_it(table: Table, tmp_path: Path, at: Set) -> None:
    write(tmp_path / "good.json", table)
    (tmp_path / "broken.json").write_text("{")
    at(tmp_path)
    with fresh(three()):
        assert serves() == 10
        assert "broken.json" in notes()


OTHERS = {
    "another card": ({"card": "NVIDIA H100 PCIe"}, "measured on NVIDIA H100 PCIe, here is "),
    "another arch": ({"arch": "sm_80"}, "measured on sm_80, here is no arch"),
    "another torch": ({"versions": {"torch": "2.0.1"}}, "torch 2.0.1 there, "),
    "another driver": (
        {"versions": {"torch": str(torch.__version__), "driver": "13000"}},
        "driver 13000 there, missing",
    ),
}


@pytest.mark.parametrize(("changed", "why"), OTHERS.values(), ids=OTHERS)
def test_a_table_of_another_environment_is_not_used_and_said_so(
    changed: dict[str, Any], why: str, table: Table, tmp_path: Path, at: Set
) -> None:
    at(write(tmp_path / "table.json", elsewhere(table, **changed)))
    with fresh(three()):
        assert serves() == 30
        assert why in notes()
        assert why in xattn.info()["tables"][0]["unused"]


def test_a_table_of_a_device_that_is_not_here(table: Table, tmp_path: Path, at: Set) -> None:
    at(write(tmp_path / "table.json", elsewhere(table, device="neuron", card="Trainium 9")))
    with fresh(three()):
        assert serves() == 30
        assert xattn.info()["tables"][0]["unused"] == "measured on Trainium 9, and there is no neuron here"
        assert notes() == ""  # of this device there is none


def test_times_of_another_version_of_a_kernel_do_not_count_and_the_others_do(
    table: Table, tmp_path: Path, at: Set
) -> None:
    packages = {**table.environment.packages, "third": {"pluggy": "0.0.1"}}
    at(write(tmp_path / "table.json", elsewhere(table, packages=packages)))
    backends = {name: backend_of(name, kernel(rank)) for name, rank in (("first", 30), ("second", 20), ("third", 10))}
    type(backends["third"]).packages = ("pluggy",)
    with fresh(plugins(*backends.values())):
        assert serves() == 20
        assert "times of third in" in notes()
        assert "pluggy 0.0.1 there, " in notes()
        assert list(xattn.info()["tables"][0]["stale"]) == ["third"]


def test_a_backend_that_is_gone_or_new_changes_nothing_for_the_others(table: Table, tmp_path: Path, at: Set) -> None:
    at(write(tmp_path / "table.json", table))
    first, second, new = (backend_of(name, kernel(rank)) for name, rank in (("first", 30), ("second", 20), ("new", 25)))
    with fresh(plugins(first, second, new)):
        assert serves() == 20
        assert "not measured, so ranked by priority: new" in notes()
        assert xattn.info()["tables"][0]["unused"] == ""


def test_where_tables_lie(table: Table, tmp_path: Path, at: Set, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "linux")
    folder = tmp_path / "cache" / "xattn" / "tables"
    folder.mkdir(parents=True)
    write(folder / "mine.json", table)
    for where, who in (("", 10), ("off", 30), (folder, 10), (folder / "mine.json", 10)):
        at(where)
        with fresh(three()):
            assert serves() == who
    at(tmp_path / "nowhere")
    with fresh(three()):
        assert serves() == 30
        assert f"XATTN_TABLES: there is no file or folder {tmp_path / 'nowhere'}" in xattn.info()["problems"]


def test_a_plugin_ships_tables_and_the_users_own_come_first(table: Table, tmp_path: Path, at: Set) -> None:
    shipped = write(tmp_path / "shipped.json", table)
    (point,) = three()
    point.load().__dict__["xattn_tables"] = hookimpl(lambda: [shipped])
    at(tmp_path / "own")
    (tmp_path / "own").mkdir()
    with fresh([point]):
        assert serves() == 10
        assert "shipped by the plugin made" in str(xattn.explain(*qkv()))
    with fresh(three()):
        write(tmp_path / "own" / "own.json", table_of([(CALL, {**TIMES, "second": 1.0})]))
    with fresh([point]):
        assert serves() == 20
    at("off")
    with fresh([point]):
        assert serves() == 30


@pytest.mark.parametrize(
    "shipped", [lambda: 1 / 0, lambda: [None], lambda: ["/nowhere/table.json"], lambda: None, lambda: "t.json"]
)
def test_a_plugin_that_ships_no_good_table_is_named(shipped: Callable[[], Any], at: Set) -> None:
    (point,) = three()
    point.load().__dict__["xattn_tables"] = hookimpl(shipped)
    at("")
    with fresh([point]):
        assert serves() == 30
        assert any("xattn_tables() r" in line or "/nowhere/table.json" in line for line in xattn.info()["problems"])


def test_the_later_of_two_measurements_counts(table: Table, tmp_path: Path, at: Set) -> None:
    with fresh(three()):
        later = table_of([(CALL, {**TIMES, "second": 1.0})], when="2026-12-01T00:00:00")
    for first, second in ((table, later), (later, table)):
        write(tmp_path / "a.json", first)
        write(tmp_path / "b.json", second)
        at(tmp_path)
        with fresh(three()):
            assert serves() == 20


def test_the_version_of_the_driver_is_the_drivers_own(monkeypatch: pytest.MonkeyPatch) -> None:
    class Library:
        @staticmethod
        def cuDriverGetVersion(number: Any) -> int:  # noqa: N802 - CUDA's name
            number._obj.value = 13000
            return 0

    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Library)
    assert _driver() == "13000"

    def missing(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert _driver() == "unknown"
