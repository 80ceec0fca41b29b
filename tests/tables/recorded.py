"""Tables of measured times for the tests: kernels that answer by name, and a table of what they took."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any, ClassVar

import torch
from support import ROOT, backend_of, plugin

import xattn
from xattn.cli.arguments import arguments_of, split
from xattn.cli.request import prepared_of
from xattn.dispatch.tables.environment import here
from xattn.dispatch.tables.format import Row, Table, Time, as_document
from xattn.dispatch.tables.kind import kind_of
from xattn.ops.table import OPS
from xattn.plugin import Request

WHEN = "2026-11-26T12:00:00"

# A cell of a grid: a call, and its times by backend.
Cell = tuple[str, dict[str, float]]


class AnyOp(xattn.Kernel[Any]):
    """Serves every call on the CPU in float32 and bfloat16 that `lacks` and `most` allow, with its `answer`.

    lacks: features it has not. most: the largest headdim. answer: what it fills its output with.
    """

    lacks: ClassVar[frozenset[str]] = frozenset()
    most: ClassVar[int] = 1024
    answer: ClassVar[float] = 0.0

    def plan(self, request: Request) -> Any:
        return lambda q, k, v, **given: torch.full_like(q, self.answer) + 0 * q  # with q's gradient


def kernel(
    priority: int, op: str = "attention", lacks: Iterable[str] = (), grads: bool = True, most: int = 1024, **more: Any
) -> AnyOp:
    """A kernel of an op. more: further members of its class."""
    words = OPS[op].vocabulary
    block: xattn.Capabilities[Any] = xattn.Capabilities(
        device="cpu",
        dtypes=frozenset({torch.float32, torch.bfloat16}),
        features=frozenset(words.feature_names) - frozenset(lacks),
        grads=frozenset(words.grads) if grads else frozenset(),
        sizes={"headdim": (1, most, 1)},
        priority={"default": priority},
        checked="for a test alone",
    )
    made: type[AnyOp] = type("Made", (AnyOp,), {"op": op, "capabilities": (block,), "answer": float(priority), **more})
    return made()


def plugins(*backends: xattn.Backend, name: str = "made") -> list[EntryPoint]:
    return [plugin(name, *backends)]


def three(**more: Any) -> list[EntryPoint]:
    """Backends that serve all: `first`, `second` and `third` by priority, which answer 30, 20 and 10. more: of what
    `second` has beside."""
    made = (("first", kernel(30)), ("second", kernel(20, **more)), ("third", kernel(10)))
    return plugins(*(backend_of(name, each) for name, each in made))


def request_of(call: str, dtype: torch.dtype = torch.float32) -> Request:
    """The request of a call in words, as `xattn explain` takes them."""
    op, words = split(call.split())
    return prepared_of(op, arguments_of(op, words, dtype), "cpu", None).request


def table_of(cells: Iterable[Cell], dtype: torch.dtype = torch.float32, when: str = WHEN) -> Table:
    """As `xattn tune` would have written it on this machine, of these backends."""
    environment = here("cpu")
    assert environment is not None
    return Table(environment, "eager", "for a test", tuple(_row(call, times, dtype, when) for call, times in cells))


def _row(call: str, times: Mapping[str, float], dtype: torch.dtype, when: str) -> Row:
    kind = kind_of(request_of(call, dtype))
    assert kind is not None
    return Row(kind, call, when, {name: Time(us, us, us, f"{name}'s kernel") for name, us in times.items()})


def write(path: Path, table: Table, **changed: Any) -> Path:
    """As a file; changed: what to put in place of parts of the document."""
    path.write_text(json.dumps({**as_document(table), **changed}))
    return path


def elsewhere(table: Table, **changed: Any) -> Table:
    """The table, measured in another environment."""
    return replace(table, environment=replace(table.environment, **changed))


def hopper() -> list[Cell]:
    """The grid of tests/tables/hopper.txt."""
    lines = (ROOT / "tests" / "tables" / "hopper.txt").read_text().splitlines()
    cells = []
    for line in filter(None, lines):
        if not line.startswith("#"):
            call, _, times = line.partition(" -> ")
            cells.append((call, {name: float(us) for name, us in (each.split("=") for each in times.split())}))
    return cells
