"""Right kernels of merge_attention, in float32 and declared roundings. A wrong one overrides one method."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from xattn_conformance.array import Array
from xattn_conformance.mutants.mutant import Results
from xattn_conformance.mutants.numbers import F32, Numbers
from xattn_conformance.ops.merge_attention.noise import as_heads
from xattn_conformance.ops.merge_attention.problem import Merge, rows
from xattn_conformance.tolerance.arithmetic import Arithmetic

ONE, ZERO, INF = np.float32(1), np.float32(0), np.float32(np.inf)


class Kernel:
    """All parts at once.

    outs: (parts, batch, seqlen, nheads, headdim). lses: (parts, batch, nheads, seqlen).
    """

    def __init__(self, problem: Merge, arithmetic: Arithmetic) -> None:
        self.problem = problem
        self.numbers = Numbers(arithmetic, problem.dtype)
        self.outs, self.lses = problem.outs.astype(np.float32), problem.lses.astype(np.float32)

    def run(self) -> Results:
        with np.errstate(invalid="ignore", divide="ignore", over="ignore", under="ignore"):
            top = self.top()
            weights = self.weights(top)
            total = self.total(weights)
            shares = self.shares(weights, total)
            out = self.out(shares)
            results = {"out": as_heads(self.numbers.at("input", out)), "lse": self.lse(total, top)[..., None]}
            if self.problem.dout is not None and self.problem.dlse is not None:
                results |= self.gradients(shares, out, self.problem.dout, self.problem.dlse)
            return results

    def top(self) -> F32:
        """What is taken off: the largest lse, 0 in dead rows."""
        top: F32 = self.lses.max(axis=0)
        return np.where(top == -INF, ZERO, top)

    def weights(self, top: F32) -> F32:
        return self.numbers.exp(self.lses - top)

    def total(self, weights: F32) -> F32:
        total: F32 = weights.sum(axis=0)
        return total

    def shares(self, weights: F32, total: F32) -> F32:
        shares: F32 = weights / np.where(total == 0, ONE, total)
        return shares

    def read(self) -> F32:
        """What no query saw a key of is not read."""
        return np.where(rows(self.lses) == -INF, ZERO, self.outs)

    def out(self, shares: F32) -> F32:
        out: F32 = (rows(shares) * self.read()).sum(axis=0)
        return out

    def lse(self, total: F32, top: F32) -> F32:
        return np.where(total == 0, -INF, top + np.log(total))

    def gradients(self, shares: F32, out: F32, dout: Array, dlse: Array) -> Results:
        douts = self.numbers.at("input", self.douts(shares, dout.astype(np.float32)))
        dlses = self.dlses(shares, self.along(out, dout.astype(np.float32)), dlse.astype(np.float32))
        found = {f"douts{part}": as_heads(each) for part, each in enumerate(douts)}
        return found | {f"dlses{part}": each[..., None] for part, each in enumerate(dlses)}

    def douts(self, shares: F32, dout: F32) -> F32:
        return rows(shares) * dout

    def along(self, out: F32, dout: F32) -> F32:
        """What the lse of each part does to out, along dout: (parts, batch, nheads, seqlen)."""
        along: F32 = np.swapaxes((dout * (self.read() - out)).sum(axis=-1), -1, -2)
        return along

    def dlses(self, shares: F32, along: F32, dlse: F32) -> F32:
        dlses: F32 = shares * (along + dlse)
        return dlses


class ByTwos(Kernel):
    """Each part joins what there is; between two of them stands what `between` makes of it. Forward only."""

    def run(self) -> Results:
        out, lse = np.zeros_like(self.outs[0]), np.full_like(self.lses[0], -INF)
        for other, other_lse in zip(self.read(), self.lses, strict=True):
            pair = replace(self.problem, outs=np.stack([out, other]), lses=np.stack([lse, other_lse]))
            step = Kernel(pair, self.numbers.arithmetic)
            with np.errstate(invalid="ignore", divide="ignore", under="ignore"):
                top = step.top()
                weights = step.weights(top)
                total = step.total(weights)
                out, lse = self.between(step.out(step.shares(weights, total))), step.lse(total, top)
        return {"out": as_heads(self.numbers.at("input", out)), "lse": lse[..., None]}

    def between(self, out: F32) -> F32:
        return out
