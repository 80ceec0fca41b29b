"""Packed sequences as one masked call of attention: the second way to say what varlen_attention is."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from xattn_conformance.array import Array
from xattn_conformance.ops.attention_like import Problem
from xattn_conformance.ops.varlen_attention.problem import Varlen


def one_call(problem: Varlen) -> Problem:
    """A batch of 1 over all tokens, with a mask (1, 1, total_q, total_k) for who sees whom, and a bias for ALiBi."""
    owner_q, place_q = _owners(problem.cu_seqlens_q, len(problem.q))
    cu_seqlens_k = problem.cu_seqlens_q if problem.cu_seqlens_k is None else problem.cu_seqlens_k
    owner_k, place_k = _owners(cu_seqlens_k, len(problem.k))
    distance = (place_q + _offsets(problem, cu_seqlens_k)[owner_q])[:, None] - place_k
    seen = (owner_q[:, None] == owner_k) & (owner_q[:, None] >= 0)
    left, right = problem.window or (None, None)
    if problem.causal:
        seen &= distance >= 0
    if left is not None:
        seen &= distance <= left
    if right is not None:
        seen &= distance >= -right
    bias = None
    if problem.alibi_slopes is not None:
        slopes = problem.alibi_slopes
        # (nheads, total_q): of every query's own sequence.
        each = slopes[owner_q].T if slopes.ndim == 2 else np.repeat(slopes[:, None], len(owner_q), axis=1)
        bias = (-each[:, :, None] * np.abs(distance))[None]
    return Problem(
        dtype=problem.dtype,
        q=problem.q[None],
        k=problem.k[None],
        v=problem.v[None],
        scale=problem.scale,
        softcap=problem.softcap,
        sinks=problem.sinks,
        bias=bias,
        mask=seen[None, None],
        return_lse=True,
        dout=None if problem.dout is None else _of_sequences(problem.dout, owner_q, 0)[None],
        dlse=None if problem.dlse is None else _of_sequences(problem.dlse, owner_q, 1)[None],
        grads=problem.grads,
    )


def _of_sequences(incoming: Array, owner: NDArray[np.int64], axis: int) -> Array:
    """With 0 for padding."""
    kept = (owner >= 0).reshape([-1 if each == axis else 1 for each in range(incoming.ndim)])
    return np.where(kept, incoming, 0.0)


def _owners(cu_seqlens: NDArray[np.int64], total: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(total,) each: the sequence of every token, -1 for padding, and its place in there."""
    token = np.arange(total)
    owner = np.searchsorted(cu_seqlens, token, side="right") - 1
    owner = np.where(token < cu_seqlens[-1], owner, -1)
    return owner, token - cu_seqlens[owner]


def _offsets(problem: Varlen, cu_seqlens_k: NDArray[np.int64]) -> NDArray[np.int64]:
    """(batch + 1,): of every sequence; of padding any."""
    batch = len(problem.cu_seqlens_q) - 1
    if isinstance(problem.align, np.ndarray):
        offsets = problem.align
    elif problem.align == "bottom_right":
        offsets = np.diff(cu_seqlens_k) - np.diff(problem.cu_seqlens_q)
    else:
        offsets = np.full(batch, 0 if problem.align == "top_left" else problem.align)
    return np.append(offsets, 0)
