"""What a backend declares, and how much of it the cases of a level ask for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from xattn.dispatch.registry import registry
from xattn_conformance.levels import HIGHEST, LEVELS, Level
from xattn_conformance.ops.registry import OPS
from xattn_conformance.result import CaseResult

Words = Mapping[str, tuple[str, ...]]

# Cases in which the backend had to compute something.
_EXECUTED = ("PASS", "FAIL", "WAIVED", "ERROR")


def declared(backend: str, kind: str | None = None) -> dict[str, tuple[str, ...]]:
    """By op, the features and gradients ("grad_qkv") of a registered backend's capability blocks. kind: of the device;
    None is every device."""
    found: dict[str, set[str]] = {}
    for kernel in registry().entry(backend).every_kernel:
        for block in kernel.capabilities:
            if kernel.op in OPS and (kind is None or block.device in (kind, "any")):
                words = {*block.features, *(f"grad_{name}" for name in block.grads)}
                found.setdefault(kernel.op, set()).update(words)
    return {op: tuple(sorted(words)) for op, words in found.items()}


def untested(words: Words, results: Iterable[CaseResult]) -> dict[str, tuple[str, ...]]:
    """By op, what is declared and used by no case that was executed. One of a knob, which asks no more of a feature
    than that it does something, does not count."""
    found: dict[str, set[str]] = {}
    for result in results:
        if result.case.op in words and result.status in _EXECUTED and not result.case.title.startswith("knob."):
            found.setdefault(result.case.op, set()).update(OPS[result.case.op].words(result.case))
    left = {op: tuple(word for word in some if word not in found.get(op, ())) for op, some in words.items()}
    return {op: some for op, some in left.items() if some}


def level_of(words: Words) -> Level:
    """The lowest level whose cases use everything that is declared, as far as any case of `HIGHEST` does."""
    most = {op: set(some) & used(op, HIGHEST) for op, some in words.items()}
    return next(level for level in LEVELS if all(some <= used(op, level) for op, some in most.items()))


def used(op: str, level: Level) -> set[str]:
    """What the cases of an op use, at a level and those below it."""
    levels = LEVELS[: LEVELS.index(level) + 1]
    return {word for case in OPS[op].cases() if case.level in levels for word in OPS[op].words(case)}
