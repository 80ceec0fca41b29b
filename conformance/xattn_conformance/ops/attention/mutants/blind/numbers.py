"""Blind mutants by one step of the softmax, or of its derivative."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from xattn_conformance.array import Array
from xattn_conformance.mutants.mutant import IN_FLOAT32, Mutant
from xattn_conformance.mutants.numbers import F32, Numbers, to_dtype
from xattn_conformance.ops.attention.mutants.backward import Backward
from xattn_conformance.ops.attention.mutants.conditions import always
from xattn_conformance.ops.attention.mutants.kernel import INF, Kernel
from xattn_conformance.ops.attention.mutants.ways import backward_misstep, misstep
from xattn_conformance.ops.attention.problem import Problem
from xattn_conformance.tolerance.arithmetic import Arithmetic


class FlooredNumbers(Numbers):
    def exp(self, x: F32) -> F32:
        return super().exp(np.where(x == -INF, x, np.maximum(x, np.float32(-20))))


class ExpFloored(Kernel):
    def __init__(self, problem: Problem, arithmetic: Arithmetic) -> None:
        super().__init__(problem, arithmetic)
        self.numbers = FlooredNumbers(arithmetic, problem.dtype)


class MaximumOfFirstTile(Kernel):
    def top(self, top: F32, logits: F32) -> F32:
        return np.where(top == -INF, super().top(top, logits), top)


class LazyRescale(Kernel):
    """A factor near 1 is left out, though the new maximum is taken."""

    def denominator(self, total: F32, factor: F32, p: F32) -> F32:
        return super().denominator(total, self.lazy(factor), p)

    def accumulate(self, acc: F32, factor: F32, p: F32, v: F32) -> F32:
        return super().accumulate(acc, self.lazy(factor), p, v)

    def lazy(self, factor: F32) -> F32:
        return np.where(factor > np.float32(0.9), np.float32(1), factor)


class LseOfLargestPart(Kernel):
    def merge(self, parts: Sequence[tuple[F32, F32]]) -> tuple[F32, F32]:
        out, _ = super().merge(parts)
        return out, np.stack([lse for _, lse in parts]).max(axis=0)


class LseInDtype(Backward):
    def __init__(self, problem: Problem, arithmetic: Arithmetic, forward: Mapping[str, Array], **how: Any) -> None:
        super().__init__(problem, arithmetic, forward, **how)
        self.lse = to_dtype(self.lse, problem.dtype)


class KeysOfTwoHeads(Backward):
    def reduce(self, name: str, shares: F32) -> F32:
        return super().reduce(name, shares[:, :, :2] if name == "dk" else shares)


NUMBERS: tuple[Mutant, ...] = (
    misstep("exp-floored", "exp of less than -20 is that of -20", ExpFloored, always),
    misstep(
        "maximum-of-first-tile", "the maximum is that of the first tile that a row sees", MaximumOfFirstTile, always
    ),
    misstep("rescale-lazy", "a new maximum less than 0.1 above the old one does not rescale", LazyRescale, always),
    misstep(
        "lse-of-largest-part",
        "the lse of a split is that of its largest part",
        LseOfLargestPart,
        always,
        block=16,
        splits=4,
    ),
    backward_misstep("grad-lse-in-dtype", "backward: the lse comes in the dtype of q", LseInDtype, always, IN_FLOAT32),
    backward_misstep("dk-of-two-heads", "dK is the share of a group's first two heads", KeysOfTwoHeads, always),
)
