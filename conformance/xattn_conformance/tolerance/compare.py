"""The one comparison: backends, canaries and mutants all pass through it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from xattn_conformance.problem import Array
from xattn_conformance.result import Check, Heat, Worst
from xattn_conformance.tolerance.expected import Expected


@dataclass(frozen=True)
class Comparison:
    """checks: every metric of every tensor against its limit. worst, heat, histogram: as in `CaseResult`."""

    checks: tuple[Check, ...]
    worst: Worst | None
    heat: Heat | None
    histogram: tuple[int, ...]

    @property
    def failed(self) -> tuple[Check, ...]:
        return tuple(check for check in self.checks if not check.ok)


def compare(expected: Mapping[str, Expected], got: Mapping[str, Array]) -> Comparison:
    """Compare whole results, laid out as (batch, heads, rows, columns), with the golden ones by name."""
    raise NotImplementedError
