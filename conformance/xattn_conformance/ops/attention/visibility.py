"""Which key each query may see, as the inputs need it. Not the oracle's function: a bug there must not hide here."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from xattn_conformance.array import Array
from xattn_conformance.ops.attention.problem import Problem

Flags = NDArray[np.bool_]

# What variations put where no query may look. 2^100 is finite and its products are not; float16 has no more than 2^15.
FILLS = {"poison": 0.0, "nan": np.nan, "big": 2.0**100}


def visible(problem: Problem) -> Flags:
    """Broadcastable to (batch, nheads, seqlen_q, seqlen_k); queries and keys are whole."""
    _, _, seqlen_q, seqlen_k = problem.scores_shape
    query, key = np.arange(seqlen_q)[:, None], np.arange(seqlen_k)
    length = np.array(seqlen_k) if problem.seqlens_k is None else problem.seqlens_k
    length = length.reshape(-1, 1, 1, 1)
    corner = length - seqlen_q if problem.align == "bottom_right" else 0
    diagonal = query + (problem.align if isinstance(problem.align, int) else corner)
    seen = np.broadcast_to(key < length, (len(length), 1, seqlen_q, seqlen_k))
    left, right = problem.window or (None, None)
    if problem.causal:
        seen = seen & (key <= diagonal)
    if left is not None:
        seen = seen & (key >= diagonal - left)
    if right is not None:
        seen = seen & (key <= diagonal + right)
    if problem.mask is not None:
        seen = seen & problem.mask
    if problem.bias is not None:
        seen = seen & ~np.isneginf(problem.bias)
    return seen


def hidden_slots(problem: Problem) -> Flags:
    """(batch, seqlen_k, nheads_k): keys, and their values, that no query of the kv head's group may see."""
    batch, nheads, _, seqlen_k = problem.scores_shape
    nheads_k = problem.k.shape[2]
    seen = np.broadcast_to(visible(problem).any(axis=2), (batch, nheads, seqlen_k))
    by_group = seen.reshape(batch, nheads_k, nheads // nheads_k, seqlen_k).any(axis=2)
    hidden: Flags = np.logical_not(by_group).swapaxes(1, 2)
    return hidden


def filling(variation: str, dtype: str) -> float:
    """What a variation of FILLS fills with, in a dtype."""
    return 2.0**15 if variation == "big" and dtype == "float16" else FILLS[variation]


def poisoned_with(problem: Problem, value: float | Array) -> Problem:
    """The problem with k and v of every hidden slot filled with a value, broadcastable to (batch, seqlen_k, nheads_k,
    1)."""
    hidden = hidden_slots(problem)[..., None]
    return replace(problem, k=np.where(hidden, value, problem.k), v=np.where(hidden, value, problem.v))
