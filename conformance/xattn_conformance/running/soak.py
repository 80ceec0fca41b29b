"""A case called again and again, for races that a few calls do not meet."""

from __future__ import annotations

from collections.abc import Mapping
from math import inf
from typing import Any

from xattn_conformance.case import Case
from xattn_conformance.ops.base import Op
from xattn_conformance.ops.call import Call
from xattn_conformance.result import Check
from xattn_conformance.running import bits, varied
from xattn_conformance.running.calls import Calls
from xattn_conformance.running.rules import Findings
from xattn_conformance.tolerance.compare import Comparison
from xattn_conformance.tolerance.expected import Expected

# Its name in the checks.
SOAK = "soak"


def look(
    op: Op[Any],
    case: Case,
    problem: Any,
    call: Call,
    calls: Calls,
    expected: Mapping[str, Expected],
    found: Findings,
) -> None:
    """Make the call `calls.target.soak` times more. Where a repetition promises equal bits each must have those of the
    first call; elsewhere each is compared with the golden, and the furthest from it is recorded."""
    times, first = calls.target.soak, calls.results
    exact = varied.promised("repeat", case, calls.target)
    others, said = 0, ""
    furthest: Comparison | None = None
    for number in range(1, times + 1):
        seed = 0 if op.by_chance(case) else number
        again = calls.run(call, f"in one of {times} further calls", seed)
        counts = {name: bits.differing(first[name], tensor) for name, tensor in again.items()}
        if differ := [name for name, count in counts.items() if count]:
            others += 1
            said = said or f"first in call {number}: {differ[0]}{bits.first(first[differ[0]], again[differ[0]])}"
        if exact or (furthest is not None and not differ):
            continue
        comparison = varied.against(op, case, problem, expected, again, calls.target)
        if furthest is None or _distance(comparison) > _distance(furthest):
            furthest = comparison
    if exact:
        found.rule(f"{SOAK}.bits", others, f"of {times} further calls {others} gave other bits, {said}")
    elif furthest is not None:
        found.compared(furthest, SOAK)


def _distance(comparison: Comparison) -> float:
    """The largest of its checks, in limits."""
    return max(map(_share, comparison.checks), default=0.0)


def _share(check: Check) -> float:
    if check.value is None or check.limit == 0:
        return 0.0 if check.ok else inf
    return check.value / check.limit
