"""A table of measured times as data and as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from xattn.dispatch.tables.environment import Environment
from xattn.dispatch.tables.kind import Kind

# The key that says that a document is a table, and the version of its format.
MARK, FORMAT = "xattn_table", 1
# A year, in microseconds: no call takes longer.
_LONGEST = 3.2e13


class TableError(ValueError):
    """A document is no table that this xattn can read. The message says what is wrong with it."""


@dataclass(frozen=True)
class Time:
    """Microseconds of one call: the median, and the 10th and 90th percentile. kernel: what ran, as `explain` has it."""

    p50_us: float
    p10_us: float
    p90_us: float
    kernel: str


@dataclass(frozen=True)
class Row:
    """The times of one kind of call, by backend. call: what was measured. when: in UTC, as 2026-11-26T21:30:00."""

    kind: Kind
    call: str
    when: str
    times: Mapping[str, Time]


@dataclass(frozen=True)
class Table:
    """mode: "device", the time of the GPU alone, or "eager", with what the host takes. method: how it was measured."""

    environment: Environment
    mode: str
    method: str
    rows: tuple[Row, ...]

    def row(self, kind: Kind) -> Row | None:
        return next((row for row in self.rows if row.kind == kind), None)

    def with_row(self, new: Row) -> Table:
        """The table with one row more, in place of an earlier one of its kind."""
        kept = [row for row in self.rows if row.kind != new.kind]
        return Table(self.environment, self.mode, self.method, (*kept, new))


def as_document(table: Table) -> dict[str, Any]:
    return {
        MARK: FORMAT,
        **asdict(table.environment),
        "mode": table.mode,
        "method": table.method,
        "rows": [_row_document(row) for row in table.rows],
    }


def _row_document(row: Row) -> dict[str, Any]:
    op, phase, dtype, features, grads, sizes = row.kind.exact
    return {
        "op": op,
        "phase": phase,
        "dtype": dtype,
        "features": list(features),
        "grads": list(grads),
        "sizes": dict(sizes),
        "extents": dict(row.kind.extents),
        "call": row.call,
        "when": row.when,
        "times": {name: asdict(time) for name, time in row.times.items()},
    }


def parse(document: object) -> Table:
    """Raises TableError for what is not exactly a table."""
    if not isinstance(document, dict) or MARK not in document:
        raise TableError("is no table of xattn")
    if document[MARK] != FORMAT:
        raise TableError(f"has format {document[MARK]!r:.20}; this xattn reads {FORMAT}")
    arch = document.get("arch")
    packages = _of(document, "packages", dict)
    environment = Environment(
        _of(document, "device", str),
        arch if arch is None else _of(document, "arch", str),
        _of(document, "card", str),
        _texts(document, "versions"),
        {name: _texts(packages, name) for name in packages},
    )
    rows = tuple(_row(number, row) for number, row in enumerate(_of(document, "rows", list), start=1))
    return Table(environment, _of(document, "mode", str), _of(document, "method", str), rows)


def _row(number: int, row: object) -> Row:
    try:
        if not isinstance(row, dict):
            raise TableError("is no object")
        times = {name: _time(name, time) for name, time in _of(row, "times", dict).items()}
        return Row(_kind(row), _of(row, "call", str), _of(row, "when", str), times)
    except TableError as error:
        raise TableError(f"row {number}: {error}") from None


def _kind(row: dict[str, Any]) -> Kind:
    exact = (
        _of(row, "op", str),
        _of(row, "phase", str),
        _of(row, "dtype", str),
        _words(row, "features"),
        _words(row, "grads"),
        _sizes(row, "sizes"),
    )
    return Kind(exact, _sizes(row, "extents"))


def _time(name: str, time: object) -> Time:
    if not isinstance(time, dict):
        raise TableError(f"the time of {name!r:.40} is {time!r:.40}, want an object")
    p50, p10, p90 = (_microseconds(time, each) for each in ("p50_us", "p10_us", "p90_us"))
    return Time(p50, p10, p90, _of(time, "kernel", str))


def _microseconds(time: dict[str, Any], name: str) -> float:
    number = time.get(name)
    if not isinstance(number, (int, float)) or isinstance(number, bool) or not 0 < number < _LONGEST:
        raise TableError(f"{name} is {number!r:.20}, want microseconds > 0")
    return float(number)


def _of(document: dict[str, Any], name: str, kind: type[Any]) -> Any:
    found = document.get(name)
    if not isinstance(found, kind):
        raise TableError(f"{name} is {found!r:.40}, want {_NAMES[kind]}")
    return found


_NAMES: dict[type[Any], str] = {str: "text", dict: "an object", list: "a list"}


def _texts(document: dict[str, Any], name: str) -> dict[str, str]:
    found = _of(document, name, dict)
    return {each: _of(found, each, str) for each in found}


def _words(row: dict[str, Any], name: str) -> tuple[str, ...]:
    found = _of(row, name, list)
    if not all(isinstance(word, str) for word in found):
        raise TableError(f"{name} is {found!r:.40}, want a list of words")
    return tuple(sorted(found))


def _sizes(row: dict[str, Any], name: str) -> tuple[tuple[str, int], ...]:
    found = _of(row, name, dict)
    for each, size in found.items():
        if not isinstance(size, int) or isinstance(size, bool) or size < 0:
            raise TableError(f"{each!r:.40} of {name} is {size!r:.40}, want a whole number >= 0")
    return tuple(sorted(found.items()))
