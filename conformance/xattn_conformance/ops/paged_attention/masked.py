"""Pages as one masked call of attention: the second way to say what paged_attention is."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from xattn_conformance.ops.attention_like import Problem
from xattn_conformance.ops.paged import Paged


def one_call(problem: Paged) -> Problem:
    """A batch of 1 over all queries and all slots of the pool, with a mask (1, 1, total_q, slots) for who sees what
    and a bias for ALiBi. One query at a time, one key at a time."""
    total_q, (blocks, block) = len(problem.q), problem.k_cache.shape[:2]
    seen = np.zeros((total_q, blocks * block), bool)
    bias = np.zeros((problem.q.shape[1], *seen.shape))
    left, right = problem.window or (None, None)
    for b, rows in enumerate(problem.rows):
        queries, keys = rows.stop - rows.start, int(problem.seqlens_k[b])
        off = _offset(problem, b, queries, keys)
        for i in range(queries):
            for j in range(keys):
                distance = i + off - j
                shown = not problem.causal or distance >= 0
                shown &= left is None or distance <= left
                shown &= right is None or distance >= -right
                if problem.tree_mask is not None and j >= off:
                    shown &= bool(problem.tree_mask[rows.start + i, j - off])
                if shown:
                    slot = int(problem.block_table[b, j // block]) * block + j % block
                    seen[rows.start + i, slot] = True
                    bias[:, rows.start + i, slot] = -_slopes(problem, b) * abs(distance)
    k, v = (cache.reshape(1, -1, *cache.shape[2:]) for cache in (problem.k_cache, problem.v_cache))
    return Problem(
        dtype=problem.dtype,
        q=problem.q[None],
        k=k,
        v=v,
        scale=problem.scale,
        softcap=problem.softcap,
        sinks=problem.sinks,
        bias=None if problem.alibi_slopes is None else bias[None],
        mask=seen[None, None],
        return_lse=True,
    )


def _offset(problem: Paged, b: int, queries: int, keys: int) -> int:
    if isinstance(problem.align, np.ndarray):
        return int(problem.align[b])
    if isinstance(problem.align, str):
        return keys - queries if problem.align == "bottom_right" else 0
    return problem.align


def _slopes(problem: Paged, b: int) -> NDArray[np.float64]:
    slopes = problem.alibi_slopes
    if slopes is None:
        return np.zeros(problem.q.shape[1])
    return slopes[b] if slopes.ndim == 2 else slopes
