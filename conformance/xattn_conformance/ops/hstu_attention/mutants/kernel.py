"""A right kernel of hstu_attention, in float32 and declared roundings. A wrong one overrides one method."""

from __future__ import annotations

import numpy as np

from xattn_conformance.mutants.mutant import Results
from xattn_conformance.mutants.numbers import F32, Numbers
from xattn_conformance.ops.hstu_attention import oracle
from xattn_conformance.ops.hstu_attention.oracle import Bools
from xattn_conformance.ops.hstu_attention.problem import Hstu, Sequence
from xattn_conformance.tolerance.arithmetic import Arithmetic

ONE, ZERO = np.float32(1), np.float32(0)


class Kernel:
    """One sequence after the other, all heads of it at once: (nheads, n, ...)."""

    def __init__(self, problem: Hstu, arithmetic: Arithmetic) -> None:
        self.problem, self.arithmetic = problem, arithmetic
        self.numbers = Numbers(arithmetic, problem.dtype)
        self.scale, self.norm = np.float32(problem.scale), np.float32(problem.norm)

    def run(self) -> Results:
        total, nheads, headdim = self.problem.q.shape
        widths = {"out": self.problem.v.shape[2]}
        if self.problem.dout is not None:
            widths |= {"dq": headdim, "dk": headdim, "dv": self.problem.v.shape[2]}
        found = {name: np.zeros((1, nheads, total, width)) for name, width in widths.items()}
        with np.errstate(invalid="ignore", over="ignore", under="ignore"):
            for b, (rows, sequence) in enumerate(zip(self.problem.rows, self.problem.sequences, strict=True)):
                parts = self.sequence(b, sequence) if rows.stop > rows.start else {}
                for name, part in parts.items():
                    found[name][0, :, rows] = part
        return found

    def sequence(self, b: int, sequence: Sequence) -> dict[str, F32]:
        q, k, v = (x.astype(np.float32) for x in (sequence.q, sequence.k, sequence.v))
        seen = self.visible(b, q.shape[1], sequence.targets)
        s = self.scores(q, k)
        weights = self.numbers.at(self.arithmetic.probabilities, np.where(seen, self.weights(s), ZERO))
        found = {"out": self.out(weights, v)}
        if sequence.dout is not None:
            g = sequence.dout.astype(np.float32)
            ds = self.numbers.at(self.arithmetic.score_gradients, np.where(seen, self.ds(s, g, v), ZERO))
            found |= {"dq": self.dq(ds, k), "dk": self.dk(ds, q), "dv": self.dv(weights, g)}
        return {name: self.numbers.at("input", x) for name, x in found.items()}

    def visible(self, b: int, n: int, targets: int) -> Bools:
        return oracle.visible(self.problem, n, targets)

    def scores(self, q: F32, k: F32) -> F32:
        if self.arithmetic.scaled_q:
            return self.numbers.matmul(self.numbers.at("input", q * self.scale), np.swapaxes(k, 1, 2))
        return self.numbers.at(self.arithmetic.scores, self.numbers.matmul(q, np.swapaxes(k, 1, 2)) * self.scale)

    def sigmoid(self, s: F32) -> F32:
        sigmoid: F32 = ONE / (ONE + self.numbers.exp(-s))
        return sigmoid

    def weights(self, s: F32) -> F32:
        found: F32 = s * self.sigmoid(s) / self.norm
        return found

    def out(self, weights: F32, v: F32) -> F32:
        return self.numbers.matmul(weights, v)

    def ds(self, s: F32, g: F32, v: F32) -> F32:
        """Without the scale, which comes last."""
        dw = self.numbers.at(self.arithmetic.probability_gradients, self.numbers.matmul(g, np.swapaxes(v, 1, 2)))
        found: F32 = dw * self.slope(s) / self.norm
        return found

    def slope(self, s: F32) -> F32:
        sigmoid = self.sigmoid(s)
        found: F32 = sigmoid * (ONE + s * (ONE - sigmoid))
        return found

    def dq(self, ds: F32, k: F32) -> F32:
        found: F32 = self.numbers.matmul(ds, k) * self.scale
        return found

    def dk(self, ds: F32, q: F32) -> F32:
        found: F32 = self.numbers.matmul(np.swapaxes(ds, 1, 2), q) * self.scale
        return found

    def dv(self, weights: F32, g: F32) -> F32:
        return self.numbers.matmul(np.swapaxes(weights, 1, 2), g)
