"""The right backward kernel, as flash-attention works: tiles of keys, probabilities recomputed from the lse.

dS, the probabilities and every head's share of dK and dV are rounded where the arithmetic says. A wrong kernel
overrides one method (see `gradients.py`).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from xattn_conformance.array import Array
from xattn_conformance.mutants.numbers import F32
from xattn_conformance.ops.attention.mutants.grouped import Bools
from xattn_conformance.ops.attention.mutants.kernel import INF, Kernel
from xattn_conformance.ops.attention.problem import Problem
from xattn_conformance.tolerance.arithmetic import Arithmetic


class Backward:
    """forward: out and lse as the forward kernel returned them. block, backwards: as of `Kernel`."""

    def __init__(
        self,
        problem: Problem,
        arithmetic: Arithmetic,
        forward: Mapping[str, Array],
        *,
        block: int | None = 64,
        backwards: bool = False,
    ) -> None:
        self.problem = problem
        self.arithmetic = arithmetic
        self.kernel = Kernel(problem, arithmetic, block=block, backwards=backwards)
        self.grouped = self.kernel.grouped
        self.numbers = self.kernel.numbers
        assert problem.dout is not None
        self.dout = self.numbers.flush(self.grouped.by_query(problem.dout))
        self.out = self.grouped.by_query(forward["out"].transpose(0, 2, 1, 3))
        self.lse = self.grouped.by_row(forward["lse"])
        zeros = np.zeros(problem.scores_shape[:3])
        self.dlse = self.grouped.by_row(zeros if problem.dlse is None else problem.dlse)

    def run(self) -> dict[str, Array]:
        """The gradients that the problem asks for: dq, dk, dv (batch, heads, rows, columns), dbias in the shape of the
        bias, dsinks (1, nheads, 1, 1)."""
        grouped, numbers = self.grouped, self.numbers
        query, dout, delta = self.kernel.query(), self.dout, self.delta()
        dq = np.zeros_like(grouped.q)
        # Each query head's share: (batch, nheads_k, group, seqlen_k, columns).
        shares = (*grouped.rows[:3], grouped.seqlen_k)
        dk = np.zeros((*shares, grouped.k.shape[4]), dtype=np.float32)
        dv = np.zeros((*shares, grouped.v.shape[4]), dtype=np.float32)
        dlogits = np.zeros((*grouped.rows, grouped.seqlen_k), dtype=np.float32)
        for keys in self.kernel.tiles():
            visible = self.kernel.visible(keys)
            seen = grouped.seen(visible)
            k, v = self.kernel.keys(keys, seen), self.kernel.values(keys, seen)
            scores = numbers.at(self.arithmetic.recomputed_scores, self.kernel.scores(query, k))
            p = self.probabilities(self.kernel.logits(scores, keys, visible))
            dv[..., keys, :] = numbers.matmul(self.kernel.probabilities(p).swapaxes(-1, -2), dout)
            dp = numbers.at(self.arithmetic.probability_gradients, numbers.matmul(dout, v.swapaxes(-1, -2)))
            dz = self.score_gradients(p, dp, delta)
            ds = numbers.at(self.arithmetic.score_gradients, dz * self.slope(scores, visible))
            dq = self.accumulate(dq, ds, k)
            dk[..., keys, :] = self.key_gradients(ds)
            dlogits[..., keys] = dz
        results = {
            "dq": grouped.result(numbers.at("input", dq * grouped.scale)),
            "dk": self.group("dk", dk * grouped.scale),
            "dv": self.group("dv", dv),
        }
        if "bias" in self.problem.grads:
            results["dbias"] = self.bias_gradient(dlogits)
        if "sinks" in self.problem.grads:
            results["dsinks"] = self.sink_gradient(delta)
        return {f"d{name}": results[f"d{name}"] for name in self.problem.grads}

    def delta(self) -> F32:
        """What every dZ of a row is less: the row sum of dout * out, less dlse."""
        delta: F32 = (self.dout * self.out).sum(axis=-1, keepdims=True) - self.dlse
        return delta

    def probabilities(self, logits: F32) -> F32:
        """Rows that saw nothing have an lse of -inf, or the sink's; their logits are -inf."""
        return self.numbers.exp(logits - np.where(self.lse == -INF, np.float32(0), self.lse))

    def score_gradients(self, p: F32, dp: F32, delta: F32) -> F32:
        """dZ: of the logits, after softcap, bias and ALiBi."""
        dz: F32 = p * (dp - delta)
        return dz

    def slope(self, scores: F32, visible: Bools) -> F32:
        """d capped / d scaled = 1 - (capped / softcap)^2."""
        if self.problem.softcap is None:
            return np.ones((1, 1, 1, 1, 1), dtype=np.float32)
        capped = self.kernel.cap(self.kernel.scaled(scores)) / np.float32(self.problem.softcap)
        slope: F32 = np.where(visible, 1 - capped * capped, np.float32(0))
        return slope

    def accumulate(self, dq: F32, ds: F32, k: F32) -> F32:
        grown: F32 = dq + self.numbers.matmul(ds, k)
        return grown

    def key_gradients(self, ds: F32) -> F32:
        return self.numbers.matmul(ds.swapaxes(-1, -2), self.grouped.q)

    def group(self, name: str, shares: F32) -> Array:
        """dK or dV from every query head's share: (batch, nheads_k, seqlen_k, columns)."""
        rounded = self.numbers.at(self.arithmetic.head_gradients, shares)
        return self.numbers.at("input", self.reduce(name, rounded)).astype(np.float64)

    def reduce(self, name: str, shares: F32) -> F32:
        total: F32 = shares.sum(axis=2)
        return total

    def bias_gradient(self, dlogits: F32) -> Array:
        """dZ, added up over the axes along which the bias is broadcast."""
        assert self.problem.bias is not None
        shape = (1,) * (4 - self.problem.bias.ndim) + self.problem.bias.shape
        whole = dlogits.reshape(self.problem.scores_shape)
        axes = tuple(axis for axis in range(4) if shape[axis] == 1 and whole.shape[axis] != 1)
        return self.numbers.at("input", whole.sum(axis=axes, keepdims=True)).astype(np.float64)

    def sink_gradient(self, delta: F32) -> Array:
        """The sink's share of the probabilities, times what every dZ is less; in float32, as sinks are."""
        share = np.where(self.lse == -INF, np.float32(0), self.numbers.exp(self.grouped.sinks - self.lse))
        dsinks: F32 = -(share * delta).sum(axis=(0, 3, 4))
        return dsinks.reshape(1, -1, 1, 1).astype(np.float64)


def differentiate(
    problem: Problem,
    arithmetic: Arithmetic,
    forward: Mapping[str, Array],
    *,
    block: int | None = 64,
    backwards: bool = False,
) -> dict[str, Array]:
    """What a right backward kernel of this arithmetic returns: see `Backward`."""
    return Backward(problem, arithmetic, forward, block=block, backwards=backwards).run()
