"""Latents as one masked call of attention: the second way to say what mla_attention is."""

from __future__ import annotations

import numpy as np

from xattn_conformance.ops.attention_like import Problem
from xattn_conformance.ops.mla_attention.problem import Latent


def one_call(problem: Latent) -> Problem:
    """A batch of 1 over all queries and all slots of the cache, with a mask (1, 1, total_q, slots) for who sees what.
    One query at a time, one slot at a time."""
    block = problem.k_cache.shape[1]
    seen = np.zeros((len(problem.q), problem.k_cache.shape[0] * block), bool)
    starts = problem.starts_q.tolist()
    for b, keys in enumerate(problem.seqlens_k.tolist()):
        for token in range(starts[b], starts[b + 1]):
            if problem.topk_indices is not None:
                for slot in problem.topk_indices[token]:
                    if slot >= 0:
                        seen[token, slot] = True
                continue
            place = keys - (starts[b + 1] - token)
            for j in range(min(place + 1, keys) if problem.causal else keys):
                seen[token, int(problem.block_table[b, j // block]) * block + j % block] = True
    latents = problem.k_cache.reshape(1, -1, 1, problem.k_cache.shape[3])
    return Problem(
        dtype=problem.dtype,
        q=problem.q[None],
        k=latents,
        v=latents[..., : problem.rank],
        scale=problem.scale,
        softcap=problem.softcap,
        sinks=problem.sinks,
        mask=seen[None, None],
        return_lse=True,
    )
