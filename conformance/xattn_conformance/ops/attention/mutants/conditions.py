"""Where a mutant can be told from a right kernel: questions about a problem."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from xattn_conformance.ops.attention.mutants.grouped import Grouped
from xattn_conformance.ops.attention.problem import Problem

Change = Callable[[Problem], Problem]
Condition = Callable[[Problem], bool]


def always(problem: Problem) -> bool:
    return True


def has(*options: str) -> Condition:
    """Whether all these options are on."""
    return lambda problem: all(_on(getattr(problem, option)) for option in options)


def _on(value: object) -> bool:
    return value is not None and value is not False


def both(*conditions: Condition) -> Condition:
    return lambda problem: all(condition(problem) for condition in conditions)


def keys_beyond(count: int) -> Condition:
    return lambda problem: problem.scores_shape[3] > count


def queries_beyond(count: int) -> Condition:
    return lambda problem: problem.scores_shape[2] > count


def heads_beyond(count: int) -> Condition:
    return lambda problem: problem.scores_shape[1] > count


def computes(problem: Problem) -> bool:
    """Whether there is an element of out, and keys to make it from; dropout is judged by statistics, not here."""
    return min(*problem.scores_shape, problem.v.shape[3]) > 0 and problem.dropout_p == 0


def sees_differently(change: Change) -> Condition:
    """Whether some query sees other keys once the problem is changed."""

    def differ(problem: Problem) -> bool:
        right, wrong = Grouped(problem), Grouped(change(problem))
        tiles = [slice(start, start + 256) for start in range(0, right.seqlen_k, 256)]
        return any(not np.array_equal(right.visible(keys), wrong.visible(keys)) for keys in tiles)

    return differ


def dead(problem: Problem) -> NDArray[np.bool_]:
    """(batch, nheads, seqlen_q, 1): queries that see no key."""
    grouped = Grouped(problem)
    alive = np.zeros(grouped.rows, dtype=bool)
    for start in range(0, grouped.seqlen_k, 256):
        alive |= grouped.visible(slice(start, start + 256)).any(axis=4)
    return ~alive.reshape(*problem.scores_shape[:3], 1)


def has_dead_rows(problem: Problem) -> bool:
    return bool(dead(problem).any())
