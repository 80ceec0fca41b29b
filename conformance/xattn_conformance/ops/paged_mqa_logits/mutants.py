"""Kernels of paged_mqa_logits that are wrong, and right ones: those of any layout, and those that get pages wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from xattn_conformance.array import Array
from xattn_conformance.mutants.mutant import Mutant, Results
from xattn_conformance.ops import logits
from xattn_conformance.ops.logits import Bools, Group, Kernel, Logits, counts, without
from xattn_conformance.ops.paged_mqa_logits.problem import PagedMqaLogits
from xattn_conformance.tolerance.arithmetic import Arithmetic


def _seeing(name: str, wrong: str, change: Callable[[Group], Bools]) -> Mutant:
    """A kernel that sees other keys of a sequence; past its last one zeros, as in a pool that was cleared."""

    def run(problem: PagedMqaLogits, arithmetic: Arithmetic) -> Results:
        return logits.seeing(change)(problem.logits, arithmetic).run()

    def applies(problem: PagedMqaLogits) -> bool:
        return any(not np.array_equal(change(group), group.seen) for group in problem.logits.groups)

    return Mutant(f"paged-logits-{name}", wrong, run, applies)


def _another(name: str, wrong: str, change: Callable[[PagedMqaLogits], Logits]) -> Mutant:
    """A right kernel of other groups."""

    def run(problem: PagedMqaLogits, arithmetic: Arithmetic) -> Results:
        return Kernel(change(problem), arithmetic).run()

    def applies(problem: PagedMqaLogits) -> bool:
        one, other = logits.golden(problem.logits), logits.golden(change(problem))
        with np.errstate(invalid="ignore"):
            same = np.isclose(one, other, rtol=0.05, atol=0.05) | (one == other)
        return counts(problem.logits) and not same.all()

    return Mutant(f"paged-logits-{name}", wrong, run, applies)


def _moved(by: int) -> Callable[[Group], Bools]:
    """So many keys more, or fewer."""

    def change(group: Group) -> Bools:
        j = np.arange(group.seen.shape[1])
        found: Bools = j < group.seen.sum(axis=1, keepdims=True) + by
        return found

    return change


def _all_new(group: Group) -> Bools:
    """Every token sees the last one too."""
    return np.broadcast_to(group.seen[-1:], group.seen.shape) if len(group.seen) else group.seen


def _reversed(group: Group) -> Bools:
    return group.seen[::-1]


def _other_pages(change: Callable[[PagedMqaLogits], PagedMqaLogits]) -> Callable[[PagedMqaLogits], Logits]:
    return lambda problem: change(problem).logits


def _rolled_table(problem: PagedMqaLogits) -> PagedMqaLogits:
    """The pages of the sequence before, as far as it has some; else its own."""
    other = np.roll(problem.table, 1, axis=0)
    return replace(problem, table=np.where(other < len(problem.cache), other, problem.table), cache=_known(problem))


def _turned_table(problem: PagedMqaLogits) -> PagedMqaLogits:
    """The pages of each sequence in reverse."""
    table = problem.table.copy()
    for row in table:
        own = row < len(problem.cache)
        row[own] = row[own][::-1]
    return replace(problem, table=table, cache=_known(problem))


def _in_order(problem: PagedMqaLogits) -> PagedMqaLogits:
    """As if pages lay side by side from each sequence's first one on."""
    table = problem.table[:, :1] + np.arange(problem.table.shape[1])
    return replace(problem, table=np.where(table < len(problem.cache), table, 0), cache=_known(problem))


def _known(problem: PagedMqaLogits) -> Array:
    """A pool that was cleared where it is NaN."""
    return np.nan_to_num(problem.cache)


def _page_late(problem: PagedMqaLogits) -> Logits:
    """The scales of the page before."""
    scale = np.nan_to_num(np.roll(problem.scale, 1, axis=0))
    return replace(problem, scale=scale).logits


def _weights_of_sequences(problem: PagedMqaLogits) -> Logits:
    """The weights of each sequence's first token."""

    def first(group: Group) -> Group:
        return replace(group, weights=np.broadcast_to(group.weights[:1], group.weights.shape))

    return without(problem.logits, first)


def _fp8(mutant: Mutant) -> Mutant:
    return replace(mutant, applies=lambda problem: problem.fp8 is not None and mutant.applies(problem))


MUTANTS = (
    *logits.mutants("paged-logits", lambda problem: problem.logits),
    _seeing("one-more", "one key past the end", _moved(1)),
    _seeing("one-fewer", "a token does not see itself", _moved(-1)),
    _seeing("all-new", "every new token sees all of them", _all_new),
    _seeing("reversed", "the new tokens of a sequence are taken in reverse", _reversed),
    _another("row", "the pages are those of the sequence before", _other_pages(_rolled_table)),
    _another("turned", "the pages of a sequence are taken in reverse", _other_pages(_turned_table)),
    _another("in-order", "pages lie side by side, whatever the table says", _other_pages(_in_order)),
    _another("weights-first", "the weights are those of a sequence's first token", _weights_of_sequences),
    _fp8(_another("scale-page", "k_scale is that of the page before", _page_late)),
)
RIGHT = logits.rights("paged-logits", lambda problem: problem.logits)
