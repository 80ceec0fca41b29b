"""The contract in float64 NumPy, one head at a time. Independent of torch and of every backend.

`rowwise.py` says the same in another way; the two agree to 1e-12 (`verify-goldens` checks it).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from xattn_conformance.array import Array
from xattn_conformance.ops.attention.problem import Problem


@dataclass(frozen=True)
class Head:
    """One query head of one batch row, for some of its queries. R = len(rows), K = seqlen_k.

    q (R, headdim); k (K, headdim) and v (K, headdim_v), zero where no query may look.
    visible (R, K); distance (R, K) = i + off - j.
    scaled, capped (R, K): scores after scale and after softcap. added (R, K): bias and ALiBi, 0 where hidden.
    p (R, K), p_sink (R,): the softmax's shares. lse (R,). out (R, headdim_v).
    """

    b: int
    h: int
    kv: int
    rows: NDArray[np.int64]
    q: Array
    k: Array
    v: Array
    visible: NDArray[np.bool_]
    distance: NDArray[np.int64]
    scaled: Array
    capped: Array
    added: Array
    p: Array
    p_sink: Array
    lse: Array
    out: Array

    @property
    def logits(self) -> Array:
        return self.capped + self.added


def scale(problem: Problem) -> float:
    return float(1 / np.sqrt(problem.q.shape[3])) if problem.scale is None else problem.scale


def visibility(problem: Problem, b: int, h: int) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """(visible, distance) of all queries of a head, (seqlen_q, seqlen_k) each."""
    _, _, seqlen_q, seqlen_k = problem.scores_shape
    length = seqlen_k if problem.seqlens_k is None else int(problem.seqlens_k[b])
    corners = {"bottom_right": length - seqlen_q, "top_left": 0}
    off = corners[problem.align] if isinstance(problem.align, str) else problem.align
    i, j = np.arange(seqlen_q)[:, None], np.arange(seqlen_k)[None, :]
    distance = i + off - j
    visible = np.broadcast_to(j < length, distance.shape).copy()
    if problem.causal:
        visible &= distance >= 0
    if problem.window is not None:
        left, right = problem.window
        if left is not None:
            visible &= distance <= left
        if right is not None:
            visible &= distance >= -right
    if problem.mask is not None:
        visible &= np.broadcast_to(problem.mask, problem.scores_shape)[b, h]
    if problem.bias is not None:
        visible &= np.broadcast_to(problem.bias, problem.scores_shape)[b, h] != -np.inf
    return visible, distance


def heads(problem: Problem, rows: NDArray[np.int64] | None = None) -> Iterator[Head]:
    """Every head of every batch row; `rows` picks queries, None is all."""
    batch, nheads, seqlen_q, _ = problem.scores_shape
    group = nheads // problem.k.shape[2]
    picked = np.arange(seqlen_q) if rows is None else rows
    for b in range(batch):
        for kv in range(problem.k.shape[2]):
            members = range(kv * group, (kv + 1) * group)
            views = [visibility(problem, b, h) for h in members]
            seen = np.logical_or.reduce([visible.any(axis=0) for visible, _ in views])
            k = np.where(seen[:, None], problem.k[b, :, kv], 0.0)
            v = np.where(seen[:, None], problem.v[b, :, kv], 0.0)
            for h, (visible, distance) in zip(members, views, strict=True):
                yield _head(problem, b, h, kv, picked, k, v, visible[picked], distance[picked])


def _head(
    problem: Problem,
    b: int,
    h: int,
    kv: int,
    rows: NDArray[np.int64],
    k: Array,
    v: Array,
    visible: NDArray[np.bool_],
    distance: NDArray[np.int64],
) -> Head:
    q = problem.q[b, rows, h]
    # A NaN or inf that some query may see turns up in the products of every query; `visible` keeps it in its rows.
    with np.errstate(invalid="ignore"):
        scaled = np.where(visible, scale(problem) * (q @ k.T), 0.0)
        capped = scaled if problem.softcap is None else problem.softcap * np.tanh(scaled / problem.softcap)
    added = np.zeros_like(scaled)
    if problem.bias is not None:
        added += np.where(visible, np.broadcast_to(problem.bias, problem.scores_shape)[b, h, rows], 0.0)
    if problem.alibi_slopes is not None:
        slope = problem.alibi_slopes[h] if problem.alibi_slopes.ndim == 1 else problem.alibi_slopes[b, h]
        added -= np.where(visible, slope * np.abs(distance), 0.0)
    sink = -np.inf if problem.sinks is None else problem.sinks[h]
    terms = np.where(visible, capped + added, -np.inf)
    top = np.maximum(terms.max(axis=1, initial=-np.inf), sink)
    base = np.where(top == -np.inf, 0.0, top)
    with np.errstate(invalid="ignore", divide="ignore"):
        shares, share_sink = np.exp(terms - base[:, None]), np.exp(sink - base)
        total = shares.sum(axis=1) + share_sink
        lse = np.where(total == 0, -np.inf, base + np.log(total))
        divisor = np.where(total == 0, 1.0, total)
        p, p_sink = shares / divisor[:, None], share_sink / divisor
        out = p @ np.where(np.isfinite(v), v, 0.0)
        for j in np.flatnonzero(~np.isfinite(v).all(axis=1)):
            out[visible[:, j]] += p[visible[:, j], j, None] * np.where(np.isfinite(v[j]), 0.0, v[j])
    return Head(b, h, kv, rows, q, k, v, visible, distance, scaled, capped, added, p, p_sink, lse, out)


def forward(problem: Problem, rows: NDArray[np.int64] | None = None) -> tuple[Array, Array]:
    """out (batch, R, nheads, headdim_v) and lse (batch, nheads, R)."""
    batch, nheads, seqlen_q, _ = problem.scores_shape
    count = seqlen_q if rows is None else len(rows)
    out = np.zeros((batch, count, nheads, problem.v.shape[3]))
    lse = np.zeros((batch, nheads, count))
    for head in heads(problem, rows):
        out[head.b, :, head.h] = head.out
        lse[head.b, head.h] = head.lse
    return out, lse
