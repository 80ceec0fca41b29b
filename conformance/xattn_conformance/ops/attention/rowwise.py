"""The contract of `xattn.attention` in float64 NumPy, one query row at a time, with gradients derived by hand.

Written from the contract alone and slow on purpose: it shares neither code nor style with `oracle.py` or any backend.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from xattn_conformance.array import Array
from xattn_conformance.ops.attention.problem import Problem


def factor(problem: Problem) -> float:
    """What scores are multiplied by."""
    return float(1 / np.sqrt(problem.q.shape[3])) if problem.scale is None else problem.scale


def keys_of(problem: Problem, b: int) -> int:
    """How many keys exist in a batch row."""
    return problem.scores_shape[3] if problem.seqlens_k is None else int(problem.seqlens_k[b])


def offset(problem: Problem, b: int) -> int:
    """The key on the diagonal of query 0."""
    _, _, seqlen_q, _ = problem.scores_shape
    if isinstance(problem.align, int):
        return problem.align
    return 0 if problem.align == "top_left" else keys_of(problem, b) - seqlen_q


def kv_head(problem: Problem, h: int) -> int:
    nheads, nheads_k = problem.scores_shape[1], int(problem.k.shape[2])
    return h // (nheads // nheads_k)


def sees(problem: Problem, b: int, h: int, i: int) -> NDArray[np.bool_]:
    """(seqlen_k,): which keys query i of head h may attend to."""
    keys = np.arange(problem.k.shape[1])
    seen = keys < keys_of(problem, b)
    diagonal = i + offset(problem, b)
    if problem.causal:
        seen &= keys <= diagonal
    left, right = problem.window if problem.window is not None else (None, None)
    if left is not None:
        seen &= keys >= diagonal - left
    if right is not None:
        seen &= keys <= diagonal + right
    if problem.mask is not None:
        seen &= np.broadcast_to(problem.mask, problem.scores_shape)[b, h, i]
    if problem.bias is not None:
        seen &= np.broadcast_to(problem.bias, problem.scores_shape)[b, h, i] != -np.inf
    return seen


def visible(problem: Problem) -> NDArray[np.bool_]:
    """`sees` for all (b, h, i)."""
    table = np.zeros(problem.scores_shape, dtype=bool)
    for index in np.ndindex(table.shape[:3]):
        table[index] = sees(problem, *index)
    return table


def hidden(problem: Problem) -> NDArray[np.bool_]:
    """(batch, seqlen_k, nheads_k): the key and value slots that no query sees."""
    seen = np.zeros(problem.k.shape[:3], dtype=bool)
    for b, h, _, j in np.argwhere(visible(problem)):
        seen[b, j, kv_head(problem, h)] = True
    return ~seen


@dataclass(frozen=True)
class Row:
    """One query of one head. Arrays over its visible keys, in the order of `keys`."""

    b: int
    h: int
    i: int
    kv: int  # the head's key-value head
    keys: NDArray[np.int64]
    scaled: Array  # after scale
    capped: Array  # after softcap
    added: Array  # bias and ALiBi
    p: Array
    p_sink: float
    lse: float
    out: Array

    @property
    def dead(self) -> bool:
        return len(self.keys) == 0

    @property
    def logits(self) -> Array:
        return self.capped + self.added


def rows(problem: Problem) -> Iterator[Row]:
    """Every query of every head, dead ones included."""
    table = visible(problem)
    batch, nheads, seqlen_q, _ = problem.scores_shape
    for b in range(batch):
        for h in range(nheads):
            for i in range(seqlen_q):
                yield _row(problem, b, h, i, np.flatnonzero(table[b, h, i]))


def _row(problem: Problem, b: int, h: int, i: int, keys: NDArray[np.int64]) -> Row:
    kv = kv_head(problem, h)
    scaled = np.array([factor(problem) * np.dot(problem.q[b, i, h], problem.k[b, j, kv]) for j in keys])
    capped = scaled if problem.softcap is None else problem.softcap * np.tanh(scaled / problem.softcap)
    added = np.zeros(len(keys))
    if problem.bias is not None:
        added += np.broadcast_to(problem.bias, problem.scores_shape)[b, h, i, keys]
    if problem.alibi_slopes is not None:
        slope = problem.alibi_slopes[h] if problem.alibi_slopes.ndim == 1 else problem.alibi_slopes[b, h]
        added -= slope * np.abs(i + offset(problem, b) - keys)

    # The terms of the denominator: the keys, then the sink. A dead row without a sink has none.
    sink = -np.inf if problem.sinks is None else float(problem.sinks[h])
    terms = np.array([*(capped + added), sink])
    lse, shares = -np.inf, np.zeros(len(terms))
    if (terms != -np.inf).any():
        largest = terms.max()
        shares = np.exp(terms - largest)
        lse = largest + np.log(shares.sum())
        shares = shares / shares.sum()  # not exp(terms - lse): beside a large lse the logarithm of the sum is lost
    p, p_sink = shares[:-1], float(shares[-1])
    out = np.zeros(problem.v.shape[3])
    for weight, j in zip(p, keys, strict=True):
        out += weight * problem.v[b, j, kv]
    return Row(b, h, i, kv, keys, scaled, capped, added, p, p_sink, float(lse), out)


def forward(problem: Problem) -> tuple[Array, Array]:
    """out (batch, seqlen_q, nheads, headdim_v) and lse (batch, nheads, seqlen_q)."""
    batch, nheads, seqlen_q, _ = problem.scores_shape
    out = np.zeros((batch, seqlen_q, nheads, problem.v.shape[3]))
    lse = np.zeros((batch, nheads, seqlen_q))
    for row in rows(problem):
        out[row.b, row.i, row.h] = row.out
        lse[row.b, row.h, row.i] = row.lse
    return out, lse


def backward(problem: Problem, dout: Array, dlse: Array) -> dict[str, Array]:
    """The gradients of sum(out * dout) + sum(lse * dlse) for q, k, v, and for bias and sinks where they are given.

    For one row, with z the logits, L the lse, p_j = exp(z_j - L) and p_sink = exp(sink - L):
        dL/dz_j = p_j,  dL/dsink = p_sink,  out = sum_j p_j v_j
        d(out . g)/dz_j = p_j (g . v_j - g . out),  d(out . g)/dsink = -p_sink (g . out),  d(out . g)/dv_j = p_j g
    z_j = capped_j + added_j, and d capped / d scaled = 1 - tanh(scaled / softcap)^2 = 1 - (capped / softcap)^2.

    A dead row moves nothing, but for its lse where that is the sink: there p_sink is 1.
    """
    dq, dk, dv = np.zeros_like(problem.q), np.zeros_like(problem.k), np.zeros_like(problem.v)
    dlogits = np.zeros(problem.scores_shape)
    dsinks = np.zeros(problem.q.shape[2])
    for row in rows(problem):
        g, dl = dout[row.b, row.i, row.h], dlse[row.b, row.h, row.i]
        for n, j in enumerate(row.keys):
            value = problem.v[row.b, j, row.kv]
            dz = row.p[n] * (np.dot(g, value) - np.dot(g, row.out) + dl)
            slope = 1.0 if problem.softcap is None else 1 - (row.capped[n] / problem.softcap) ** 2
            ds = dz * slope * factor(problem)
            dq[row.b, row.i, row.h] += ds * problem.k[row.b, j, row.kv]
            dk[row.b, j, row.kv] += ds * problem.q[row.b, row.i, row.h]
            dv[row.b, j, row.kv] += row.p[n] * g
            dlogits[row.b, row.h, row.i, j] = dz
        dsinks[row.h] += row.p_sink * (dl - np.dot(g, row.out))
    grads = {"q": dq, "k": dk, "v": dv}
    if problem.bias is not None:
        grads["bias"] = sum_to(dlogits, problem.bias.shape)
    if problem.sinks is not None:
        grads["sinks"] = dsinks
    return grads


def sum_to(full: Array, shape: tuple[int, ...]) -> Array:
    """The adjoint of broadcasting `shape` to the shape of `full`."""
    added = full.ndim - len(shape)
    total: Array = full.sum(axis=tuple(range(added)))
    kept = tuple(axis for axis, size in enumerate(shape) if size == 1 and total.shape[axis] != 1)
    summed: Array = total.sum(axis=kept, keepdims=True)
    return summed
