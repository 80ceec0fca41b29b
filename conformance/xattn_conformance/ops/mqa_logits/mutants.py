"""Kernels of mqa_logits that are wrong, and right ones: those of any layout, and those that get ranges wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from xattn_conformance.mutants.mutant import Mutant, Results
from xattn_conformance.ops import logits
from xattn_conformance.ops.mqa_logits.problem import Ints, MqaLogits
from xattn_conformance.tolerance.arithmetic import Arithmetic

Change = Callable[[MqaLogits], MqaLogits]


def _moved(starts: int, ends: int) -> Change:
    return lambda problem: replace(problem, starts=problem.starts + starts, ends=problem.ends + ends)


def _ranges(name: str, wrong: str, change: Change) -> Mutant:
    """A right kernel of other ranges."""

    def run(problem: MqaLogits, arithmetic: Arithmetic) -> Results:
        return logits.Kernel(change(problem).logits, arithmetic).run()

    def applies(problem: MqaLogits) -> bool:
        return not np.array_equal(change(problem).seen, problem.seen)

    return Mutant(f"logits-{name}", wrong, run, applies)


def _first_tile(problem: MqaLogits) -> Ints:
    return problem.starts // 16 * 16


MUTANTS = (
    *logits.mutants("logits", lambda problem: problem.logits),
    _ranges("one-more", "one key past the end", _moved(0, 1)),
    _ranges("one-fewer", "the last key is left out", _moved(0, -1)),
    _ranges("start-before", "the key before the first as well", _moved(-1, 0)),
    _ranges("start-after", "the first key is left out", _moved(1, 0)),
    _ranges("no-start", "starts are dropped", lambda problem: replace(problem, starts=0 * problem.starts)),
    _ranges("no-end", "ends are dropped", lambda problem: replace(problem, ends=0 * problem.ends + len(problem.k))),
    _ranges("tile-start", "ranges begin with a tile of 16 keys", lambda p: replace(p, starts=_first_tile(p))),
    _ranges(
        "row",
        "the ranges are those of the row before",
        lambda problem: replace(problem, starts=np.roll(problem.starts, 1), ends=np.roll(problem.ends, 1)),
    ),
    _ranges(
        "lengths",
        "ends are taken for lengths",
        lambda problem: replace(problem, ends=problem.starts + problem.ends),
    ),
)
RIGHT = logits.rights("logits", lambda problem: problem.logits)
