"""Mutants at the ends of what an argument may be: logits and biases past every stand-in for infinity, and masks of
fewer dimensions that fit another meaning."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from xattn_conformance.array import Array
from xattn_conformance.inputs.formats import FORMATS
from xattn_conformance.mutants.mutant import Mutant
from xattn_conformance.mutants.numbers import F32
from xattn_conformance.ops.attention.mutants import kernels
from xattn_conformance.ops.attention.mutants.conditions import Condition, both
from xattn_conformance.ops.attention.mutants.kernel import Kernel
from xattn_conformance.ops.attention.mutants.options import edited
from xattn_conformance.ops.attention.mutants.steps import hides
from xattn_conformance.ops.attention.mutants.ways import misstep
from xattn_conformance.ops.attention.problem import Problem
from xattn_conformance.tolerance.arithmetic import CANONICAL

_HALF = np.float32(65504)


class ScoresInFloat16Range(Kernel):
    """Q K^T, before it is scaled, is no larger than float16's largest number."""

    def scores(self, q: F32, k: F32) -> F32:
        with np.errstate(invalid="ignore"):
            return np.clip(super().scores(q, k), -_HALF, _HALF)


class MaximumFrom1e4(Kernel):
    """The maximum begins at -1e4, not at -inf."""

    def start(self, number: int) -> tuple[F32, F32]:
        top, total = super().start(number)
        return np.maximum(top, np.float32(-1e4)), total


def below(logit: float) -> Condition:
    """Whether all that some query sees is below a logit."""

    def test(problem: Problem) -> bool:
        lse = Kernel(problem, CANONICAL).run()["lse"]
        return bool(((lse < logit) & (lse > -np.inf)).any())

    return test


def large_products(problem: Problem) -> bool:
    kernel = Kernel(problem, CANONICAL)
    with np.errstate(invalid="ignore"):
        return bool((np.abs(kernel.numbers.matmul(kernel.grouped.q, kernel.grouped.k.swapaxes(-1, -2))) > _HALF).any())


def lowest_as_hidden(problem: Problem, bias: Array) -> Array:
    return np.where(bias <= -FORMATS[problem.dtype].largest, -np.inf, bias)


def by_batch(problem: Problem, values: NDArray[Any]) -> NDArray[Any]:
    """Two dimensions as (batch, seqlen_k), three as (batch, seqlen_q, seqlen_k), where the sizes let them."""
    batch, nheads, seqlen_q, seqlen_k = problem.scores_shape
    if values.shape == (seqlen_q, seqlen_k) and batch == seqlen_q:
        return values[:, None, None]
    if values.ndim == 3 and values.shape[0] == nheads == batch:
        return values[:, None]
    return values


ENDS: tuple[Mutant, ...] = (
    misstep(
        "mask-of-1e4-seen", "hidden scores are -1e4, and others lower", kernels.FiniteMask, both(hides, below(-1.1e4))
    ),
    misstep("scores-float16-range", "Q K^T stops at 65,504", ScoresInFloat16Range, large_products),
    misstep("maximum-from-1e4", "the maximum of a row begins at -1e4", MaximumFrom1e4, below(-1.1e4)),
    edited("lowest-hides", "the dtype's least number in a bias hides", "bias", lowest_as_hidden),
    edited("bias-by-batch", "a bias of two or three dimensions begins with the batch", "bias", by_batch),
    edited("mask-by-batch", "a mask of two or three dimensions begins with the batch", "mask", by_batch),
)
