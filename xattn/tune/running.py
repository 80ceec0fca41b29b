"""A run of `xattn tune`: call after call, each written down when it was measured."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch

from xattn.dispatch.registry import registry
from xattn.dispatch.tables.format import Row, Table
from xattn.dispatch.tables.order import by_time
from xattn.tune import storing
from xattn.tune.measuring import Call, measure


class Told(Protocol):
    """Who is told how far a run is."""

    def begins(self, call: Call) -> None: ...

    def ends(self, row: Row | None) -> None: ...


@dataclass
class Tuned:
    """What a run came to.

    rows: what was measured. gains: of each, how much faster it is than by priority alone. kept: how many kinds the
    table had already. unserved: calls that no backend can serve. failed: a line for each failure. stopped: why the run
    ended early; empty where it did not.
    """

    file: Path
    rows: list[Row] = field(default_factory=list)
    gains: list[float] = field(default_factory=list)
    kept: int = 0
    unserved: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    stopped: str = ""

    @property
    def mean_gain(self) -> float:
        """In the geometric mean."""
        return math.exp(sum(map(math.log, self.gains)) / len(self.gains))

    def as_dict(self) -> dict[str, Any]:
        measured = [
            {"call": row.call, "p50_us": {name: t.p50_us for name, t in row.times.items()}} for row in self.rows
        ]
        lists = {"unserved": self.unserved, "failed": self.failed}
        return {"file": str(self.file), "measured": measured, "kept": self.kept, **lists, "stopped": self.stopped}


def run(
    calls: Sequence[Call],
    path: Path,
    empty: Table,
    before: Table | None,
    device: torch.device,
    seconds: float,
    told: Told,
) -> Tuned:
    """Measure calls, those that the table `before` has aside, into the table in a file, of which `empty` is the
    beginning. Ends early, and says so, where it is interrupted or the file cannot be written."""
    tuned = Tuned(path)
    mode: Any = empty.mode
    for call in calls:
        told.begins(call)
        able = call.able()
        known = None if before is None else before.row(call.kind)
        row = None
        if not able:
            tuned.unserved.append(call.words)
        elif known is not None and able.keys() <= known.times.keys():
            tuned.kept += 1
        else:
            try:
                measured = measure(call, able, device, mode, seconds)
                tuned.failed += [f"{name}: {why}, in the call {call.words}" for name, why in measured.failures.items()]
                row = measured.row
                if row is not None:
                    storing.add(path, empty, row)
                    tuned.rows.append(row)
                    tuned.gains.append(_gain(call, row))
            except KeyboardInterrupt:
                tuned.stopped = "interrupted; the same command goes on from here"
                break
            except OSError as error:
                tuned.stopped = f"{path} cannot be written, and is as it was: {error.strerror or error}"
                break
        told.ends(row)
    return tuned


def _gain(call: Call, row: Row) -> float:
    """How much faster a call is by its times than by priority alone."""
    times = {name: time.p50_us for name, time in row.times.items()}
    names = [entry.name for entry, _ in registry().ordered(call.prepared.request) if entry.name in times]
    return times[names[0]] / times[names[by_time(names, times)[0]]]
