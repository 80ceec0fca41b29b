"""Kernels with one wrong step each. What is wrong with them stands in `zoo.py`."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from xattn_conformance.mutants.numbers import F32, to_dtype
from xattn_conformance.ops.hstu_attention.mutants.kernel import ONE, ZERO, Kernel
from xattn_conformance.ops.hstu_attention.oracle import Bools
from xattn_conformance.ops.hstu_attention.problem import Sequence

_PI = np.float32(np.pi)
_TILE = 64


def with_weights(change: Callable[[Kernel, F32], F32]) -> type[Kernel]:
    """A kernel whose weights are a function of the scores."""
    return type("Weighed", (Kernel,), {"weights": lambda self, s: change(self, s)})


def seeing(change: Callable[[Kernel, int, int, int, Bools], Bools]) -> type[Kernel]:
    """A kernel that sees other tokens: by itself, the sequence, its length, its targets, and what is right."""

    def visible(self: Kernel, b: int, n: int, targets: int) -> Bools:
        return change(self, b, n, targets, Kernel.visible(self, b, n, targets))

    return type("Seeing", (Kernel,), {"visible": visible})


class Softmax(Kernel):
    def weights(self, s: F32) -> F32:
        e = np.exp(s - s.max(axis=-1, keepdims=True))
        weights: F32 = e / e.sum(axis=-1, keepdims=True)
        return weights


class Relu(Kernel):
    def weights(self, s: F32) -> F32:
        found: F32 = np.maximum(s, ZERO) / self.norm
        return found


class Gelu(Kernel):
    """By tanh, as it is often written."""

    def weights(self, s: F32) -> F32:
        inner = np.sqrt(np.float32(2) / _PI) * (s + np.float32(0.044715) * s**3)
        found: F32 = np.float32(0.5) * s * (ONE + np.tanh(inner)) / self.norm
        return found


class ScaledAfter(Kernel):
    def scores(self, q: F32, k: F32) -> F32:
        return self.numbers.matmul(q, np.swapaxes(k, 1, 2))

    def weights(self, s: F32) -> F32:
        found: F32 = super().weights(s) * self.scale
        return found


class DefaultScale(Kernel):
    def scores(self, q: F32, k: F32) -> F32:
        found: F32 = self.numbers.matmul(q, np.swapaxes(k, 1, 2)) * np.float32(q.shape[2] ** -0.5)
        return found


class OwnNorm(Kernel):
    """The length of each sequence."""

    def sequence(self, b: int, sequence: Sequence) -> dict[str, F32]:
        self.norm = np.float32(max(sequence.q.shape[1], 1))
        return super().sequence(b, sequence)


class LongestNorm(Kernel):
    def sequence(self, b: int, sequence: Sequence) -> dict[str, F32]:
        self.norm = np.float32(np.diff(self.problem.cu_seqlens).max())
        return super().sequence(b, sequence)


class BoundNorm(Kernel):
    def sequence(self, b: int, sequence: Sequence) -> dict[str, F32]:
        self.norm = np.float32(self.problem.max_seqlen)
        return super().sequence(b, sequence)


class ScoresInDtype(Kernel):
    """The sum over dimensions is rounded after every two of them."""

    def scores(self, q: F32, k: F32) -> F32:
        found: F32 = np.zeros((*q.shape[:2], k.shape[1]), np.float32)
        for start in range(0, q.shape[2], 2):
            some = slice(start, start + 2)
            found = self.numbers.at("input", found + super().scores(q[..., some], k[..., some]))
        return found


class OutInDtype(Kernel):
    """The sum over keys is rounded after every two of them."""

    def out(self, weights: F32, v: F32) -> F32:
        found: F32 = np.zeros((*weights.shape[:2], v.shape[2]), np.float32)
        for start in range(0, v.shape[1], 2):
            some = slice(start, start + 2)
            found = self.numbers.at("input", found + self.numbers.matmul(weights[:, :, some], v[:, some]))
        return found


class CoarseWeights(Kernel):
    def weights(self, s: F32) -> F32:
        return to_dtype(super().weights(s), "bfloat16")


class NeighboursHead(Kernel):
    def out(self, weights: F32, v: F32) -> F32:
        return super().out(weights, np.roll(v, 1, axis=0))


class UnscaledDq(Kernel):
    def dq(self, ds: F32, k: F32) -> F32:
        return self.numbers.matmul(ds, k)


class UnscaledDk(Kernel):
    def dk(self, ds: F32, q: F32) -> F32:
        return self.numbers.matmul(np.swapaxes(ds, 1, 2), q)


class SigmoidSlope(Kernel):
    def slope(self, s: F32) -> F32:
        return self.sigmoid(s)


class WeightSlope(Kernel):
    """The derivative of the sigmoid, as if it were not multiplied by the score."""

    def slope(self, s: F32) -> F32:
        sigmoid = self.sigmoid(s)
        found: F32 = sigmoid * (ONE - sigmoid)
        return found


class UnnormalisedDs(Kernel):
    def ds(self, s: F32, g: F32, v: F32) -> F32:
        found: F32 = super().ds(s, g, v) * self.norm
        return found


class DvOfScores(Kernel):
    def dv(self, weights: F32, g: F32) -> F32:
        return super().dv((weights != 0).astype(np.float32) / self.norm, g)


class DsInDtypeTwice(Kernel):
    """Rounded to bfloat16, whatever the dtype."""

    def ds(self, s: F32, g: F32, v: F32) -> F32:
        return to_dtype(super().ds(s, g, v), "bfloat16")


class UpToItsTile(Kernel):
    """Gradients of queries up to the end of a key's tile alone, as where nothing after it were seen."""

    def sequence(self, b: int, sequence: Sequence) -> dict[str, F32]:
        found = super().sequence(b, sequence)
        if sequence.dout is None:
            return found
        n = sequence.q.shape[1]
        i = np.arange(n)
        inside = i[:, None] < (i // _TILE + 1) * _TILE
        right = self.visible
        self.visible = lambda *args: right(*args) & inside  # type: ignore[method-assign]
        lacking = super().sequence(b, sequence)
        self.visible = right  # type: ignore[method-assign]
        return {**lacking, "out": found["out"]}


class DqOfItsKeys(Kernel):
    """dk in place of dq: the gradients of the scores turned."""

    def dq(self, ds: F32, k: F32) -> F32:
        return super().dq(np.ascontiguousarray(np.swapaxes(ds, 1, 2)), k)
