"""Kernels with one wrong step each. What is wrong with them stands in `zoo.py`."""

from __future__ import annotations

import numpy as np

from xattn_conformance.mutants.numbers import F32
from xattn_conformance.ops.merge_attention.mutants.kernel import INF, ZERO, ByTwos, Kernel
from xattn_conformance.ops.merge_attention.problem import rows


class BaseTwo(Kernel):
    def weights(self, top: F32) -> F32:
        return np.exp2(self.lses - top)

    def lse(self, total: F32, top: F32) -> F32:
        return np.where(total == 0, -INF, top + np.log2(total))


class Unnormalised(Kernel):
    def shares(self, weights: F32, total: F32) -> F32:
        return weights


class Alike(Kernel):
    def shares(self, weights: F32, total: F32) -> F32:
        there = weights > 0
        alike: F32 = there / np.maximum(there.sum(axis=0), 1).astype(np.float32)
        return alike


class Unshifted(Kernel):
    def top(self) -> F32:
        return np.zeros_like(self.lses[0])


class ReadsAll(Kernel):
    def read(self) -> F32:
        return self.outs


class ZeroByZero(Kernel):
    def shares(self, weights: F32, total: F32) -> F32:
        return weights / total


class WithSink(Kernel):
    def total(self, weights: F32) -> F32:
        return super().total(weights) + np.exp(-self.top())


class SharesInDtype(Kernel):
    def shares(self, weights: F32, total: F32) -> F32:
        return self.numbers.at("input", super().shares(weights, total))


class LargestLse(Kernel):
    def lse(self, total: F32, top: F32) -> F32:
        return np.where(total == 0, -INF, top)


class LseInDtype(Kernel):
    def lse(self, total: F32, top: F32) -> F32:
        return self.numbers.at("input", super().lse(total, top))


class DeadLseZero(Kernel):
    def lse(self, total: F32, top: F32) -> F32:
        return np.where(total == 0, ZERO, super().lse(total, top))


class RoundedBetween(ByTwos):
    def between(self, out: F32) -> F32:
        return self.numbers.at("input", out)


class DoutWhole(Kernel):
    def douts(self, shares: F32, dout: F32) -> F32:
        return np.where(rows(shares) > 0, dout, ZERO)


class DoutAlike(Kernel):
    def douts(self, shares: F32, dout: F32) -> F32:
        return rows((shares > 0) / np.float32(len(shares))) * dout


class WithoutOut(Kernel):
    def along(self, out: F32, dout: F32) -> F32:
        return np.zeros_like(self.lses)


class WithoutMean(Kernel):
    def along(self, out: F32, dout: F32) -> F32:
        return super().along(np.zeros_like(out), dout)


class WithoutLse(Kernel):
    def dlses(self, shares: F32, along: F32, dlse: F32) -> F32:
        return super().dlses(shares, along, np.zeros_like(dlse))


class UnweightedLse(Kernel):
    def dlses(self, shares: F32, along: F32, dlse: F32) -> F32:
        return np.where(shares > 0, shares * along + dlse, ZERO)
