"""Two reports side by side, cell by cell and case by case."""

from __future__ import annotations

import math

import msgspec

from xattn_conformance.reports.tally import Counts, matrix, nearest, nearness
from xattn_conformance.result import CaseResult, Provenance, Report, Status


class Side(msgspec.Struct, frozen=True, kw_only=True):
    """What a report is of."""

    backend: str
    device: str
    suite: str
    goldens: str
    level: str
    selection: str
    started: str
    provenance: Provenance

    @property
    def name(self) -> str:
        return f"{self.backend} on {self.device}"


class Cell(msgspec.Struct, frozen=True, kw_only=True):
    """Cases of one feature and dtype by status; None where the report has no such cell."""

    feature: str
    dtype: str
    a: Counts | None
    b: Counts | None


class Pair(msgspec.Struct, frozen=True, kw_only=True):
    """One case that both reports have.

    nearest_a, nearest_b: the worst check relative to its limit; None where nothing finite was measured against one.
    ratio:   nearest_b / nearest_a where both executed the case: above 1, B is nearer to its limits.
    bitwise: whether both executed it and the outputs have the same bits.
    """

    id: str
    a: Status
    b: Status
    nearest_a: float | None
    nearest_b: float | None
    ratio: float | None
    bitwise: bool

    @property
    def changed(self) -> bool:
        return self.a != self.b


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """warnings: why the two may not be comparable at all, a sentence each; read them first."""

    a: Side
    b: Side
    warnings: tuple[str, ...]
    cells: tuple[Cell, ...]
    pairs: tuple[Pair, ...]
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]

    @property
    def changed(self) -> tuple[Pair, ...]:
        return tuple(pair for pair in self.pairs if pair.changed)

    @property
    def bitwise(self) -> int:
        """How many cases have bitwise equal outputs."""
        return sum(pair.bitwise for pair in self.pairs)

    def json(self) -> bytes:
        return msgspec.json.format(msgspec.json.encode(self), indent=1)


def compare(a: Report, b: Report) -> Comparison:
    """Two runs: of two targets, or of one at two times."""
    ours, theirs = ({result.id: result for result in report.cases} for report in (a, b))
    return Comparison(
        a=_side(a),
        b=_side(b),
        warnings=tuple(_warnings(a, b, ours, theirs)),
        cells=_cells(a, b),
        pairs=tuple(_pair(result, theirs[id_]) for id_, result in ours.items() if id_ in theirs),
        only_a=tuple(id_ for id_ in ours if id_ not in theirs),
        only_b=tuple(id_ for id_ in theirs if id_ not in ours),
    )


def _side(report: Report) -> Side:
    return Side(**{name: getattr(report, name) for name in Side.__struct_fields__})


def _warnings(a: Report, b: Report, ours: dict[str, CaseResult], theirs: dict[str, CaseResult]) -> list[str]:
    found = [f"{side} is invalid, nothing in it counts: {r.invalid}" for side, r in (("A", a), ("B", b)) if r.invalid]
    if a.suite != b.suite:
        found.append(f"A is of suite {a.suite}, B of {b.suite}: cases, goldens and limits of the same name may differ")
    if a.goldens != b.goldens:
        found.append("A and B were judged against different goldens")
    if a.provenance != b.provenance:
        found.append(f"A was obtained on {a.provenance}, B on {b.provenance}")
    both = ours.keys() & theirs.keys()
    if other := sum(_differ(ours[id_].inputs, theirs[id_].inputs) for id_ in both):
        found.append(f"{other} cases of the same name had different inputs")
    return found


def _differ(a: str, b: str) -> bool:
    """Of two hashes, where both are there."""
    return bool(a and b and a != b)


def _cells(a: Report, b: Report) -> tuple[Cell, ...]:
    ours, theirs = matrix(a), matrix(b)
    keys = dict.fromkeys([*ours, *theirs])
    return tuple(Cell(feature=key[0], dtype=key[1], a=ours.get(key), b=theirs.get(key)) for key in keys)


def _pair(a: CaseResult, b: CaseResult) -> Pair:
    near_a, near_b = _near(a), _near(b)
    ratio = near_b / near_a if near_a and near_b is not None else None
    same = bool(a.output) and a.output == b.output and not _differ(a.inputs, b.inputs)
    return Pair(id=a.id, a=a.status, b=b.status, nearest_a=near_a, nearest_b=near_b, ratio=ratio, bitwise=same)


def _near(result: CaseResult) -> float | None:
    check = nearest(result)
    near = math.inf if check is None else nearness(check)
    return near if math.isfinite(near) else None
