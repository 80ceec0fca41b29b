"""Which cases a run has."""

from __future__ import annotations

from collections.abc import Collection
from fnmatch import fnmatchcase
from math import prod

from xattn.dispatch.registry import registry
from xattn_conformance.case import LEVELS, Case, Level
from xattn_conformance.ops.registry import OPS


def served(backend: str) -> tuple[str, ...]:
    """The ops that a registered backend has."""
    found = registry().entries[backend].backend
    return tuple(name for name, op in OPS.items() if op.served_by(found))


def select(level: Level, dtypes: Collection[str], pattern: str = "*", ops: Collection[str] | None = None) -> list[Case]:
    """The cases of a level and those below it whose ids match the pattern, in the order of their tables.

    ops: by name; None is all that the suite knows.
    """
    levels = LEVELS[: LEVELS.index(level) + 1]
    chosen = [op for name, op in OPS.items() if ops is None or name in ops]
    every = [case for op in chosen for case in (*op.cases(), *op.knob_cases())]
    return [case for case in every if case.level in levels and case.dtype in dtypes and fnmatchcase(case.id, pattern)]


def size(case: Case) -> int:
    """What the work of a case grows with: its sizes multiplied, those of keys and values that go beside another's
    left out."""
    return prod(number for name, number in case.shape.items() if name not in ("nheads_k", "headdim_v"))


def slowest_first(cases: Collection[Case]) -> list[Case]:
    """So that no worker is left alone with a long one at the end. A backward pass takes about three forward ones."""
    return sorted(cases, key=lambda case: size(case) * (3 if case.grads else 1), reverse=True)
