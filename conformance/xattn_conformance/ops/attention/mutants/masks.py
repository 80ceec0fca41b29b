"""Mutants that see too many keys, too few, or others."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from xattn_conformance.mutants.mutant import Mutant
from xattn_conformance.ops.attention.mutants.conditions import Change, Condition, always, both, has, sees_differently
from xattn_conformance.ops.attention.mutants.ways import misread, with_mask
from xattn_conformance.ops.attention.problem import Problem


def positional(problem: Problem) -> bool:
    return problem.causal or problem.window is not None


def causal_by(extra: int) -> Change:
    """causal with the diagonal moved: a window to the right that ends `extra` keys behind it."""

    def change(problem: Problem) -> Problem:
        left, right = problem.window or (None, None)
        return replace(problem, causal=False, window=(left, extra if right is None else min(right, extra)))

    return change


def window_by(more_left: int, more_right: int) -> Change:
    def change(problem: Problem) -> Problem:
        assert problem.window is not None
        left, right = problem.window
        left = None if left is None else left + more_left
        right = None if right is None else right + more_right
        return replace(problem, window=(left, right))

    return change


def other_corner(problem: Problem) -> Problem:
    return replace(problem, align="top_left" if problem.align == "bottom_right" else "bottom_right")


def at_corner(align: str) -> Change:
    return lambda problem: replace(problem, align=align)


def offset_by(extra: int) -> Change:
    def change(problem: Problem) -> Problem:
        assert isinstance(problem.align, int)
        return replace(problem, align=problem.align + extra)

    return change


def offset_negated(problem: Problem) -> Problem:
    assert isinstance(problem.align, int)
    return replace(problem, align=-problem.align)


def offset_clipped(problem: Problem) -> Problem:
    """Kept among the offsets of a chunk that lies inside the keys."""
    assert isinstance(problem.align, int)
    _, _, seqlen_q, seqlen_k = problem.scores_shape
    return replace(problem, align=min(max(problem.align, 0), max(seqlen_k - seqlen_q, 0)))


def by_corner(problem: Problem) -> bool:
    return isinstance(problem.align, str)


def by_offset(problem: Problem) -> bool:
    return isinstance(problem.align, int)


def no_causal(problem: Problem) -> Problem:
    return replace(problem, causal=False)


def no_window(problem: Problem) -> Problem:
    return replace(problem, window=None)


def open_as_zero(problem: Problem) -> Problem:
    assert problem.window is not None
    left, right = problem.window
    return replace(problem, window=(left or 0, right or 0))


def zero_as_open(problem: Problem) -> Problem:
    assert problem.window is not None
    left, right = problem.window
    return replace(problem, window=(left or None, right or None))


def window_is_causal(problem: Problem) -> Problem:
    assert problem.window is not None
    return replace(problem, window=(problem.window[0], 0))


def no_last_key(problem: Problem) -> Problem:
    return _keys_below(problem, problem.scores_shape[3] - 1)


def no_last_tile(problem: Problem) -> Problem:
    return _keys_below(problem, (problem.scores_shape[3] - 1) // 64 * 64)


def _keys_below(problem: Problem, count: int) -> Problem:
    return with_mask(problem, (np.arange(problem.scores_shape[3]) < count).reshape(1, 1, 1, -1))


def no_first_key(problem: Problem) -> Problem:
    return with_mask(problem, (np.arange(problem.scores_shape[3]) > 0).reshape(1, 1, 1, -1))


def no_seqlens(problem: Problem) -> Problem:
    return replace(problem, seqlens_k=None)


def seqlens_by(extra: int) -> Change:
    def change(problem: Problem) -> Problem:
        assert problem.seqlens_k is not None
        return replace(problem, seqlens_k=np.clip(problem.seqlens_k + extra, 0, problem.scores_shape[3]))

    return change


def seqlens_of_row_0(problem: Problem) -> Problem:
    assert problem.seqlens_k is not None
    return replace(problem, seqlens_k=np.full_like(problem.seqlens_k, problem.seqlens_k[0]))


def seqlens_as_mask(problem: Problem) -> Problem:
    """The keys end where they should, but the diagonal does not move."""
    assert problem.seqlens_k is not None
    present = np.arange(problem.scores_shape[3]) < problem.seqlens_k.reshape(-1, 1, 1, 1)
    return with_mask(no_seqlens(problem), present)


def misseen(name: str, wrong: str, change: Change, needs: Condition) -> Mutant:
    """`needs` is what `change` takes for granted."""
    return misread(name, wrong, change, both(needs, sees_differently(change)))


CORNERED = both(positional, by_corner)
CAUSAL, WINDOW, SEQLENS = has("causal"), has("window"), has("seqlens_k")

MASKS = (
    misseen("causal+1", "causal shows one key behind the diagonal", causal_by(1), CAUSAL),
    misseen("causal-1", "causal hides the diagonal", causal_by(-1), CAUSAL),
    misseen("causal-ignored", "causal is ignored", no_causal, CAUSAL),
    misseen("other-corner", "top_left is taken for bottom_right, and the reverse", other_corner, CORNERED),
    misseen("offset+1", "an offset is one too large", offset_by(1), by_offset),
    misseen("offset-1", "an offset is one too small", offset_by(-1), by_offset),
    misseen("offset-sign", "an offset has the wrong sign", offset_negated, by_offset),
    misseen("offset-clipped", "an offset outside of the keys is moved inside", offset_clipped, by_offset),
    misseen("offset-bottom-right", "an offset is taken for bottom_right", at_corner("bottom_right"), by_offset),
    misseen("offset-top-left", "an offset is taken for top_left", at_corner("top_left"), by_offset),
    misseen("window-ignored", "the window is ignored", no_window, WINDOW),
    misseen("window-left+1", "the window has one key more to the left", window_by(1, 0), WINDOW),
    misseen("window-left-1", "the window has one key less to the left", window_by(-1, 0), WINDOW),
    misseen("window-right+1", "the window has one key more to the right", window_by(0, 1), WINDOW),
    misseen("window-right-1", "the window has one key less to the right", window_by(0, -1), WINDOW),
    misseen("window-none-is-0", "an open side of the window is read as 0", open_as_zero, WINDOW),
    misseen("window-0-is-none", "a window of 0 is read as an open one", zero_as_open, WINDOW),
    misseen("window-is-causal", "a window hides what is behind the diagonal", window_is_causal, WINDOW),
    misseen("key-last-dropped", "the last key is not read", no_last_key, always),
    misseen("key-first-dropped", "the first key is not read", no_first_key, always),
    misseen("tile-last-dropped", "the last tile of 64 keys is not read", no_last_tile, always),
    misseen("seqlens-ignored", "seqlens_k is ignored", no_seqlens, SEQLENS),
    misseen("seqlens+1", "one key past seqlens_k is read", seqlens_by(1), SEQLENS),
    misseen("seqlens-1", "the last key before seqlens_k is not read", seqlens_by(-1), SEQLENS),
    misseen("seqlens-of-row-0", "every batch row ends where the first one does", seqlens_of_row_0, SEQLENS),
    misseen("seqlens-diagonal", "the diagonal ends at seqlen_k, not at seqlens_k", seqlens_as_mask, SEQLENS),
)
