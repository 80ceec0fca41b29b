"""merge_attention in float64 NumPy, and the second way of saying it: two parts at a time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from xattn_conformance.array import Array
from xattn_conformance.ops.merge_attention.problem import Merge, rows


@dataclass(frozen=True)
class Merged:
    """out: (batch, seqlen, nheads, headdim). lse: (batch, nheads, seqlen).
    read: the outs, 0 where they are not read. shares: (parts, batch, nheads, seqlen), what each part weighs; 0 in dead
    rows."""

    out: Array
    lse: Array
    read: Array
    shares: Array


def merge(outs: Array, lses: Array) -> Merged:
    """Shapes as in `Merge`."""
    with np.errstate(invalid="ignore"):
        top = lses.max(axis=0)
        weights = np.exp(lses - np.where(top == -np.inf, 0.0, top))
        total = weights.sum(axis=0)
        dead = total == 0
        shares = weights / np.where(dead, 1.0, total)
        lse = np.where(dead, -np.inf, top + np.log(np.where(dead, 1.0, total)))
        read = np.where(rows(lses) == -np.inf, 0.0, outs)
        return Merged((rows(shares) * read).sum(axis=0), lse, read, shares)


def by_twos(outs: Array, lses: Array) -> tuple[Array, Array]:
    """(out, lse), written another way: each part joins what there is."""
    out, lse = np.zeros_like(outs[0]), np.full_like(lses[0], -np.inf)
    for other, other_lse in zip(outs, lses, strict=True):
        with np.errstate(invalid="ignore"):
            joined = np.logaddexp(lse, other_lse)
            kept, added = (np.where(each == -np.inf, 0.0, np.exp(each - joined)) for each in (lse, other_lse))
            out = rows(kept) * out + rows(added) * np.where(rows(other_lse) == -np.inf, 0.0, other)
        lse = joined
    return out, np.where(lse == np.inf, np.nan, lse)


@dataclass(frozen=True)
class Gradients:
    """douts: (parts, batch, seqlen, nheads, headdim). dlses: (parts, batch, nheads, seqlen)."""

    douts: Array
    dlses: Array


def gradients(problem: Merge) -> Gradients:
    """From dout and dlse: every part's share of dout, and what its lse does to out and to lse."""
    assert problem.dout is not None
    assert problem.dlse is not None
    found = merge(problem.outs, problem.lses)
    along = np.swapaxes((problem.dout * (found.read - found.out)).sum(axis=-1), -1, -2)
    return Gradients(rows(found.shares) * problem.dout, found.shares * (along + problem.dlse))
