"""Writing a table so that nothing that was there is lost: by others at the same time, or to a full disk."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from xattn.dispatch.tables.environment import Environment
from xattn.dispatch.tables.format import Row, Table, as_document
from xattn.dispatch.tables.reading import read

try:
    import fcntl
except ImportError:  # Windows: two processes that tune at once there may lose rows of each other, never a table
    fcntl = None  # type: ignore[assignment]


class OtherTableError(ValueError):
    """A file has what was measured somewhere else, or is no table: nothing is written there."""


def stored(path: Path, environment: Environment, mode: str) -> Table | None:
    """The table in a file; None where there is no file. Raises TableError for what is no table, OtherTableError for one
    of another environment or mode."""
    if not path.exists():
        return None
    table = read(path)
    if table.environment != environment or table.mode != mode:
        raise OtherTableError(f"{path} is of another environment or mode; name another file, or remove it")
    return table


def add(path: Path, empty: Table, row: Row) -> None:
    """Add a row to the table in a file, beside what others have written there meanwhile. empty: the table without rows,
    which is begun where there is no file.

    Raises OSError where it cannot be written, which leaves the file as it was, and as `stored` does.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(path):
        table = stored(path, empty.environment, empty.mode) or empty
        _replace(path, json.dumps(as_document(table.with_row(row)), indent=1) + "\n")


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One process at a time. The lock ends with the process that holds it, however that ends."""
    with path.with_name(f"{path.name}.lock").open("a") as lock:
        if fcntl is not None:
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _replace(path: Path, text: str) -> None:
    """Whoever reads sees the old file or the new one."""
    new = path.with_name(f"{path.name}.{os.getpid()}.new")
    try:
        with new.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    except BaseException:
        new.unlink(missing_ok=True)
        raise


def now() -> str:
    """In UTC, as a row has it."""
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime())
