"""The tables of this process: read when the first call is planned, and not again."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xattn.dispatch.registry import registry
from xattn.dispatch.tables import places
from xattn.dispatch.tables.environment import Environment, here
from xattn.dispatch.tables.format import Row, Table, TableError, Time, parse
from xattn.dispatch.tables.kind import Kind, distance, doublings

USER = "user"


@dataclass(frozen=True)
class File:
    """One file that may hold a table. source: USER, or the plugin that ships it, whose distribution is `vouched`.
    problem: why it cannot be read; it has a table otherwise."""

    path: Path
    source: str
    vouched: str = ""
    table: Table | None = None
    problem: str = ""


@dataclass(frozen=True)
class Used:
    """A table, and how far it counts in an environment. unused: why nothing of it does. stale: the backends whose
    times do not, each with what changed."""

    file: File
    table: Table
    unused: str
    stale: Mapping[str, str]


@dataclass(frozen=True)
class Measured:
    """What a table says of a kind: the times that count, by backend, and whether they are of just this kind or of one
    nearby."""

    times: Mapping[str, Time]
    row: Row
    used: Used
    exact: bool

    @property
    def by_user(self) -> bool:
        return self.used.file.source == USER


def read(path: Path) -> Table:
    """Raises TableError, with a message that begins with the path, for what cannot be read."""
    import json  # where there is a table alone

    if path.exists() and not path.is_file():  # a device may have no end, and a pipe no beginning
        raise TableError(f"{path}: is no file")
    try:
        return parse(json.loads(path.read_bytes()))
    except OSError as error:
        raise TableError(f"{path}: {error.strerror or error}") from None
    except TableError as error:
        raise TableError(f"{path}: {error}") from None
    except (ValueError, RecursionError) as error:
        raise TableError(f"{path}: is no JSON: {error}") from None


class Tables:
    """Those that a process found. What counts is asked for each device apart: to look at a GPU takes memory of it."""

    def __init__(self) -> None:
        self.problems: list[str] = []
        self.files = [] if places.setting() == places.OFF else [*self._user(), *self._shipped()]
        self.problems += [file.problem for file in self.files if file.problem]
        self._by_device: dict[str, list[Used]] = {}
        # Rows that count, with their extents as `doublings`: by device, and what must be the same.
        self._rows: dict[object, list[tuple[tuple[int, ...], Used, Row]]] = {}
        self._ops: set[tuple[str, str]] = set()
        # What was found before: a call of other sizes is mostly of a kind that was asked for.
        self._found: dict[object, Measured | None] = {}

    def _user(self) -> Iterator[File]:
        try:
            found = places.user_files()
        except OSError as error:
            self.problems.append(str(error))
            return
        for path in found:
            yield _file(path, USER)

    def _shipped(self) -> Iterator[File]:
        for plugin, path in registry().tables:
            yield _file(path, plugin.name, plugin.distribution)

    def of(self, device: str) -> list[Used]:
        """The tables of a device of this machine, and how far they count."""
        if device not in self._by_device:
            files = [file for file in self.files if file.table is not None and file.table.environment.device == device]
            now = here(device) if files else None
            found = [_used(file, file.table, now) for file in files if file.table is not None]
            for used in found:
                for row in () if used.unused else used.table.rows:
                    key = _same(row.kind, device, used.table.environment.arch)
                    self._rows.setdefault(key, []).append((doublings(row.kind.extents), used, row))
                    self._ops.add((device, row.kind.exact[0]))
            self._by_device[device] = found
        return self._by_device[device]

    def measures(self, op: str, device: str) -> bool:
        """Whether any table that counts has times of an op."""
        self.of(device)
        return (device, op) in self._ops

    def find(self, kind: Kind, device: str, arch: str | None) -> Measured | None:
        """The times of a kind: of itself or the nearest; of several the user's own, and of these the latest."""
        key = kind, device, arch
        if key not in self._found:
            self._found[key] = self._nearest(kind, device, arch)
        return self._found[key]

    def _nearest(self, kind: Kind, device: str, arch: str | None) -> Measured | None:
        self.of(device)
        extents = doublings(kind.extents)
        best: tuple[tuple[int, bool], Row, Used, dict[str, Time]] | None = None
        for of_row, used, row in self._rows.get(_same(kind, device, arch), ()):
            steps = distance(extents, of_row)
            if steps is None:
                continue
            times = {name: time for name, time in row.times.items() if name not in used.stale}
            key = (steps, used.file.source != USER)
            if times and (best is None or key < best[0] or (key == best[0] and row.when > best[1].when)):
                best = key, row, used, times
        return None if best is None else Measured(best[3], best[1], best[2], best[0][0] == 0)


def _same(kind: Kind, device: str, arch: str | None) -> object:
    """What two calls have in common where the time of one may count for the other: all but how large they are."""
    return device, arch, kind.exact, tuple([name for name, _ in kind.extents])


def _file(path: Path, source: str, vouched: str = "") -> File:
    try:
        return File(path, source, vouched, read(path))
    except TableError as error:
        return File(path, source, vouched, problem=str(error))


def _used(file: File, table: Table, now: Environment | None) -> Used:
    if now is None:
        where = table.environment
        return Used(file, table, f"measured on {where.card}, and there is no {where.device} here", {})
    return Used(file, table, table.environment.difference(now), table.environment.stale(now, file.vouched))


_tables: Tables | None = None
_lock = threading.Lock()


def tables() -> Tables:
    """The tables of this process."""
    global _tables
    if _tables is None:
        with _lock:
            _tables = _tables or Tables()
    return _tables


def forget() -> None:
    """Read them anew at the next plan."""
    global _tables
    _tables = None


def report(file: File) -> dict[str, Any]:
    """A file for `info`: what was measured, where and when, and what of it does not count."""
    found: dict[str, Any] = {"file": str(file.path), "source": file.source, "problem": file.problem}
    if file.table is None:
        return found
    environment, rows = file.table.environment, file.table.rows
    used = next(used for used in tables().of(environment.device) if used.file is file)
    when = sorted(row.when for row in rows)
    return {
        **found,
        "device": environment.device,
        "arch": environment.arch,
        "card": environment.card,
        "mode": file.table.mode,
        "kinds": len(rows),
        "backends": sorted({name for row in rows for name in row.times}),
        "from": when[0] if when else "",
        "to": when[-1] if when else "",
        "unused": used.unused,
        "stale": dict(used.stale),
    }
