"""What `explain` says of measured times."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from xattn.dispatch.tables.order import TIE
from xattn.dispatch.tables.reading import USER, Measured, tables


@dataclass(frozen=True)
class Measurement:
    """From where the times of a call's candidates are.

    call:  what was measured. exact: whether that is a call of the same kind, or only one near it.
    card, mode, when: the device, "device" or "eager" time, and the time in UTC.
    file, source: the table, and "user" or the plugin that ships it.
    """

    call: str
    exact: bool
    card: str
    mode: str
    when: str
    file: str
    source: str

    def __str__(self) -> str:
        whose = self.file if self.source == USER else f"{self.file}, shipped by the plugin {self.source}"
        what = "a call of this kind" if self.exact else f"a call near this one, {self.call}"
        return f"{self.mode} time of {what}, on {self.card}, {self.when[:10]}; {whose}"


def measurement(known: Measured) -> Measurement:
    table, file = known.used.table, known.used.file
    where = table.environment.card, table.mode, known.row.when, str(file.path), file.source
    return Measurement(known.row.call, known.exact, *where)


def near_ties(times: Mapping[str, float], taken: str | None) -> list[str]:
    """Why a backend was taken although another was faster. times: of those that may be taken."""
    if taken is None or taken not in times:
        return []
    fastest = min(times, key=lambda name: times[name])
    if times[fastest] < times[taken] <= TIE * times[fastest]:
        return [f"{fastest} is faster by less than {TIE - 1:.0%}, so priority decides"]
    return []


def what_does_not_count(device: str, able: Sequence[str], known: Measured | None) -> list[str]:
    """What no table says of a call, and which tables say nothing. able: the backends that can serve it."""
    notes = []
    found = tables().of(device)
    if known is None and any(used.table.rows for used in found if not used.unused):
        notes.append("no table has times of a call near this one, so priority decides")
    if known is not None and (missing := [name for name in able if name not in known.times]):
        notes.append(f"not measured, so ranked by priority: {', '.join(missing)}")
    for used in found:
        if used.unused:
            notes.append(f"the table {used.file.path} does not count: {used.unused}")
        else:
            for name in used.stale.keys() & {*able}:
                notes.append(f"times of {name} in {used.file.path} do not count: {used.stale[name]}")
    return [*notes, *tables().problems]
