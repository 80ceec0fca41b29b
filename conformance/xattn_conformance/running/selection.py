"""Which cases a run has."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable
from fnmatch import fnmatchcase
from math import prod

import msgspec

from xattn.dispatch.registry import registry
from xattn_conformance.case import Case
from xattn_conformance.levels import LEVELS, Level
from xattn_conformance.ops.registry import OPS

# Cases on fresh inputs in a run, of each op and dtype, and the size of the largest: seconds in all.
FRESH = 4
_FRESH_MAX = 2**24


def served(backend: str) -> tuple[str, ...]:
    """The ops that a registered backend has. Cases of the others are no part of its run."""
    there = registry().entry(backend).ops
    return tuple(name for name in OPS if name in there)


def select(
    level: Level, dtypes: Collection[str], pattern: str = "*", ops: Collection[str] | None = None, seed: int = 0
) -> list[Case]:
    """The cases of a level and those below it whose ids match the pattern, in the order of their tables.

    ops: by name; None is all that the suite knows. seed: of their inputs; 0 is the published ones.
    """
    levels = LEVELS[: LEVELS.index(level) + 1]
    chosen = [op for name, op in OPS.items() if ops is None or name in ops]
    every = [case for op in chosen for case in (*op.cases(), *op.knob_cases())]
    found = [case for case in every if case.level in levels and case.dtype in dtypes and fnmatchcase(case.id, pattern)]
    return [msgspec.structs.replace(case, draw=seed) for case in found] if seed else found


def fresh(passed: Iterable[Case], seed: int) -> list[Case]:
    """A few of the cases that passed, of each op and dtype, on inputs that the seed draws: an answer that was kept from
    the published inputs is no answer to them."""
    groups: dict[tuple[str, str], list[Case]] = {}
    for case in sorted(passed, key=lambda case: hashlib.sha256(f"{seed} {case.id}".encode()).digest()):
        group = groups.setdefault((case.op, case.dtype), [])
        if len(group) < FRESH and size(case) <= _FRESH_MAX and (other := drawn(case, seed)):
            group.append(other)
    return [case for group in groups.values() for case in group]


def drawn(case: Case, seed: int) -> Case | None:
    """The case with other inputs; None where all draws of them are the same."""
    op, other = OPS[case.op], msgspec.structs.replace(case, draw=seed)
    return other if op.digest(op.problem(other)) != op.digest(op.problem(case)) else None


def size(case: Case) -> int:
    """What the work of a case grows with: its sizes multiplied, those of keys and values that go beside another's
    left out."""
    return prod(number for name, number in case.shape.items() if name not in ("nheads_k", "headdim_v"))


def slowest_first(cases: Collection[Case]) -> list[Case]:
    """So that no worker is left alone with a long one at the end. A backward pass takes about three forward ones."""
    return sorted(cases, key=lambda case: size(case) * (3 if case.grads else 1), reverse=True)
