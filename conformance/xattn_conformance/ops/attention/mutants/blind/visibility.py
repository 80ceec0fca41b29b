"""Blind mutants by which keys a query sees."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from xattn_conformance.mutants.mutant import Mutant
from xattn_conformance.ops.attention.mutants.conditions import Change, always
from xattn_conformance.ops.attention.mutants.grouped import Grouped
from xattn_conformance.ops.attention.mutants.ways import backward_misread, full, misread, with_mask
from xattn_conformance.ops.attention.problem import Problem


def distance(problem: Problem) -> NDArray[np.int64]:
    """i + off - j, (batch, 1, seqlen_q, seqlen_k)."""
    found: NDArray[np.int64] = Grouped(problem).distance(slice(None))[:, 0]
    return found


def queries(problem: Problem) -> NDArray[np.int64]:
    return np.arange(problem.scores_shape[2])[:, None]


def keys(problem: Problem) -> NDArray[np.int64]:
    return np.arange(problem.scores_shape[3])


def seen_by(problem: Problem, distance: NDArray[np.int64]) -> Problem:
    """Causal and the window by another distance."""
    left, right = problem.window or (None, None)
    seen = distance >= (0 if problem.causal else np.iinfo(np.int64).min)
    if left is not None:
        seen = seen & (distance <= left)
    if right is not None:
        seen = seen & (distance >= -right)
    return with_mask(replace(problem, causal=False, window=None), seen)


def in_fours(problem: Problem) -> Problem:
    if not problem.causal:
        return problem
    last_of_four = distance(problem) + 3 - queries(problem) % 4
    return with_mask(replace(problem, causal=False), last_of_four >= 0)


def by_key_of_tile(problem: Problem) -> Problem:
    return seen_by(problem, distance(problem) + keys(problem) // 64 * 64)


def by_query_of_tile(problem: Problem) -> Problem:
    return seen_by(problem, distance(problem) - queries(problem) // 64 * 64)


def symmetric(problem: Problem) -> Problem:
    return problem if problem.window is None else replace(problem, window=(problem.window[0],) * 2)


def by_sixteen(problem: Problem) -> Problem:
    left, right = problem.window or (None, None)
    if left is None:
        return problem
    first = distance(problem) + keys(problem) - left
    return with_mask(replace(problem, window=(None, right)), keys(problem) >= first // 16 * 16)


def lengths(rounded: int, least: int = 0, more: int = 0) -> Change:
    def change(problem: Problem) -> Problem:
        if problem.seqlens_k is None:
            return problem
        longer = np.maximum(-(-problem.seqlens_k // rounded) * rounded + more, least)
        return replace(problem, seqlens_k=np.minimum(longer, problem.scores_shape[3]))

    return change


def mask_by_32(problem: Problem) -> Problem:
    if problem.mask is None:
        return problem
    past = keys(problem) >= problem.scores_shape[3] // 32 * 32
    return replace(problem, mask=full(problem.mask) | past)


VISIBILITY: tuple[Mutant, ...] = (
    misread("causal-in-fours", "causal lets four queries see what the last of them sees", in_fours, always),
    misread("key-of-tile", "causal and window count a key from the start of its tile of 64", by_key_of_tile, always),
    misread("query-of-tile", "causal and window count a query from the start of its 64", by_query_of_tile, always),
    misread("window-symmetric", "the window is as wide to the right as to the left", symmetric, always),
    misread("window-by-16", "the window begins at a multiple of 16 keys", by_sixteen, always),
    misread("lengths-by-8", "seqlens_k is rounded up to a multiple of 8", lengths(8), always),
    misread("length-0-is-1", "a batch row without keys has one", lengths(1, least=1), always),
    misread("mask-by-32", "a packed mask is not read past its last whole word of 32 keys", mask_by_32, always),
    backward_misread("grad-lengths+1", "backward: one key past seqlens_k is read", lengths(1, more=1), always),
)
