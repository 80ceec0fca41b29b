"""What stand-ins take their numbers from: attention in float64 by the suite's oracle, and the gradients that follow.

A stand-in makes a `Problem` of what its kernel computes, which is not always what it was asked for, and does to the
result what the kernel does to it. Only how a flash kernel's backward goes on from any out and lse is written here, for
the oracle knows no wrong ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from xattn_conformance.array import Array
from xattn_conformance.ops.attention import oracle
from xattn_conformance.ops.attention.problem import Problem

Bools = NDArray[np.bool_]


def array(x: Tensor) -> Array:
    """Its values in float64."""
    values: Array = x.detach().double().numpy()
    return values


def rounded(values: Array, dtype: torch.dtype) -> Array:
    """As stored in dtype."""
    return array(torch.from_numpy(values).to(dtype))


@dataclass(frozen=True)
class Forward:
    """out (batch, seqlen_q, nheads, headdim_v). top, total (batch, nheads, seqlen_q): each row's largest logit, and the
    sum of exp(logit - top), a sink among them; -inf and 0 where a row sees nothing."""

    out: Array
    top: Array
    total: Array

    @property
    def lse(self) -> Array:
        with np.errstate(divide="ignore"):
            lse: Array = self.top + np.log(self.total)
        return lse


def forward(problem: Problem, kept: Array | None = None) -> Forward:
    """kept: what dropout multiplies the probabilities by, (batch, nheads, seqlen_q, seqlen_k)."""
    batch, nheads, seqlen_q, _ = problem.scores_shape
    out = np.empty((batch, seqlen_q, nheads, problem.v.shape[3]))
    top, total = np.empty((batch, nheads, seqlen_q)), np.empty((batch, nheads, seqlen_q))
    for head in oracle.heads(problem):
        at = head.b, head.h
        out[head.b, :, head.h] = head.out if kept is None else (head.p * kept[at]) @ head.v
        sink = -np.inf if problem.sinks is None else problem.sinks[head.h]
        top[at] = np.where(head.visible, head.logits, -np.inf).max(axis=1, initial=sink)
        with np.errstate(invalid="ignore"):
            total[at] = np.where(head.lse == -np.inf, 0.0, np.exp(head.lse - top[at]))
    return Forward(out, top, total)


def filled(found: Forward, problem: Problem, hidden: Bools, low: float) -> Forward:
    """The same where `hidden` keys (seqlen_q, seqlen_k) are not left out, but have the score `low`."""
    count = hidden.sum(axis=1)
    v = problem.v.repeat(problem.q.shape[2] // problem.v.shape[2], axis=2)
    top = np.maximum(found.top, np.where(count > 0, low, -np.inf))
    with np.errstate(invalid="ignore", over="ignore"):
        # 0 times NaN is NaN: what a hidden value holds comes through.
        values = np.tensordot(hidden.astype(float), v, axes=(1, 1)).swapaxes(0, 1)
        seen, each = found.total * np.exp(found.top - top), np.where(count > 0, np.exp(low - top), 0.0)
        total = seen + count * each
        shares = [(x / total).swapaxes(1, 2)[..., None] for x in (seen, each)]
        out = shares[0] * found.out + shares[1] * values
    return Forward(out, top, total)


@dataclass(frozen=True)
class Gradients:
    """q, k, v: in their own shapes. scores: (seqlen_q, seqlen_k), of the scores, summed over batch and heads.
    delta: what dout and out make, (batch, nheads, seqlen_q)."""

    q: Array
    k: Array
    v: Array
    scores: Array
    delta: Array

    def sinks(self, sinks: Array, lse: Array) -> Array:
        """Of sinks (batch, nheads, number)."""
        p: Array = np.exp(sinks[..., None] - lse[:, :, None])
        found: Array = -(p * self.delta[:, :, None]).sum(axis=3)
        return found


def gradients(
    problem: Problem,
    out: Array,
    lse: Array,
    dout: Array,
    *,
    dlse: Array | None = None,
    kept: Array | None = None,
    low: float = -np.inf,
    stored: Callable[[Array], Array] = lambda x: x,
) -> Gradients:
    """As a flash kernel's backward goes on from `out` and `lse` (laid out as in `Forward`), right or wrong.

    dlse: (batch, nheads, seqlen_q).
    low: the score of a hidden key. stored: rounds scores, probabilities and their gradients, before each is used.
    """
    batch, nheads, seqlen_q, seqlen_k = problem.scores_shape
    scale = oracle.scale(problem)
    dq, dk, dv = (np.zeros_like(x) for x in (problem.q, problem.k, problem.v))
    dscores, delta = np.zeros((seqlen_q, seqlen_k)), np.zeros((batch, nheads, seqlen_q))
    for head in oracle.heads(problem):
        b, h, kv = head.b, head.h, head.kv
        # Not the oracle's k and v, in which what no query sees is 0.
        q, k, v, g = problem.q[b, :, h], problem.k[b, :, kv], problem.v[b, :, kv], dout[b, :, h]
        delta[b, h] = (g * out[b, :, h]).sum(axis=1) - (0 if dlse is None else dlse[b, h])
        base = np.where(lse[b, h] == -np.inf, 0.0, lse[b, h])
        with np.errstate(invalid="ignore", over="ignore"):
            p = stored(np.exp(stored(np.where(head.visible, head.logits, low)) - base[:, None]))
            dp = stored(g @ v.T)
            used = p
            if kept is not None:
                used, dp = p * kept[b, h], dp * kept[b, h]
            ds = stored(p * (dp - delta[b, h][:, None]))
            dq[b, :, h] = scale * (ds @ k)
            dk[b, :, kv] += scale * (ds.T @ q)
            dv[b, :, kv] += used.T @ g
        dscores += ds
    return Gradients(dq, dk, dv, dscores, delta)
