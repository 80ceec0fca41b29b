"""hstu_attention in float64 NumPy, and the second way of saying it: all tokens in one masked call."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from xattn_conformance.array import Array
from xattn_conformance.ops.hstu_attention.problem import Hstu, Sequence

Bools = NDArray[np.bool_]


def visible(problem: Hstu, n: int, targets: int) -> Bools:
    """(n, n): which tokens each token of a sequence sees, as the contract words it."""
    i = np.arange(n)
    m = n - problem.before - targets
    place = np.minimum(np.maximum(i - problem.before, 0), m)
    distance = place[:, None] - place
    if not problem.causal:
        distance = np.abs(distance)
    seen: Bools = (i[:, None] == i) | (distance > 0)
    if problem.max_attn_len is not None:
        seen &= distance <= problem.max_attn_len
    if problem.contextual_seqlen:
        seen |= (place == 0)[:, None] & (place < m)
    return seen


@dataclass(frozen=True)
class Head:
    """One head of one sequence of n tokens.

    q, k: (n, headdim), v, g: (n, headdim_v), g the gradient of out, None where none is asked for.
    seen, s: (n, n), which tokens see which, and the scores. sigmoid, silu: of s. slope: the derivative of SiLU there.
    """

    b: int
    h: int
    rows: slice
    q: Array
    k: Array
    v: Array
    g: Array | None
    seen: Bools
    s: Array

    @property
    def sigmoid(self) -> Array:
        return 0.5 * (1 + np.tanh(self.s / 2))

    @property
    def silu(self) -> Array:
        return self.s * self.sigmoid

    @property
    def slope(self) -> Array:
        return self.sigmoid * (1 + self.s * (1 - self.sigmoid))


def heads(problem: Hstu) -> Iterator[Head]:
    for b, (rows, sequence) in enumerate(zip(problem.rows, problem.sequences, strict=True)):
        seen = visible(problem, sequence.q.shape[1], sequence.targets)
        for h in range(problem.q.shape[1]):
            yield head(problem, sequence, b, h, rows, seen)


def head(problem: Hstu, sequence: Sequence, b: int, h: int, rows: slice, seen: Bools) -> Head:
    g = None if sequence.dout is None else sequence.dout[h]
    q, k = sequence.q[h], sequence.k[h]
    return Head(b, h, rows, q, k, sequence.v[h], g, seen, problem.scale * (q @ k.T))


@dataclass(frozen=True)
class Answer:
    """Of one head: out and dv (n, headdim_v), dq and dk (n, headdim); w, ds: (n, n), the weights, and the gradients of
    the scores."""

    w: Array
    out: Array
    ds: Array
    grads: Mapping[str, Array]


def answer(problem: Hstu, at: Head) -> Answer:
    w = np.where(at.seen, at.silu / problem.norm, 0.0)
    if at.g is None:
        return Answer(w, w @ at.v, np.zeros_like(w), {})
    ds = np.where(at.seen, (at.g @ at.v.T) * at.slope / problem.norm, 0.0)
    grads = {"dq": problem.scale * (ds @ at.k), "dk": problem.scale * (ds.T @ at.q), "dv": w.T @ at.g}
    return Answer(w, w @ at.v, ds, grads)


def in_one_call(problem: Hstu) -> dict[str, Array]:
    """out and the gradients, (total, nheads, ...), written another way: by what kind of token each is, without places,
    and with SiLU and its derivative by their exponentials."""
    total = len(problem.q)
    seen = np.zeros((total, total), bool)
    for rows, sequence in zip(problem.rows, problem.sequences, strict=True):
        for i in range(rows.start, rows.stop):
            for j in range(rows.start, rows.stop):
                seen[i, j] = _sees(problem, i - rows.start, j - rows.start, rows.stop - rows.start, sequence.targets)
    q, k, v = (np.nan_to_num(x) for x in (problem.q, problem.k, problem.v))
    s = problem.scale * np.einsum("ihd,jhd->hij", q, k)
    e = np.exp(-np.abs(s))
    up, down = 1 / (1 + e), e / (1 + e)
    sigmoid = np.where(s > 0, up, down)
    w = np.where(seen, s * sigmoid / problem.norm, 0.0)
    found = {"out": np.einsum("hij,jhd->ihd", w, v)}
    if problem.dout is None:
        return found
    g = np.nan_to_num(problem.dout)
    slope = sigmoid + s * up * down
    ds = np.where(seen, np.einsum("ihd,jhd->hij", g, v) * slope, 0.0) * (problem.scale / problem.norm)
    found["dq"], found["dk"] = np.einsum("hij,jhd->ihd", ds, k), np.einsum("hij,ihd->jhd", ds, q)
    found["dv"] = np.einsum("hij,ihd->jhd", w, g)
    return found


def _sees(problem: Hstu, i: int, j: int, n: int, targets: int) -> bool:
    """Whether token i of a sequence of n sees token j."""
    contextual, limit = problem.contextual_seqlen or 0, problem.max_attn_len
    history = range(max(contextual - 1, 0), n - targets)  # the last contextual token stands where it begins
    if i == j:
        return True
    if i < contextual and len(history) > 0 and j < n - targets:
        return True

    def place(token: int) -> int:
        if token >= n - targets:
            return history.stop
        return max(token, history.start) if len(history) else history.stop

    distance = place(i) - place(j)
    if not problem.causal:
        distance = abs(distance)
    return distance > 0 and (limit is None or distance <= limit)
