"""Kernels of merge_attention that are wrong, each in one known way, and right ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

import numpy as np

from xattn_conformance.mutants.mutant import IN_FLOAT32, NOWHERE, Mutant, Results, Right
from xattn_conformance.ops.merge_attention.mutants import wrong as kernels
from xattn_conformance.ops.merge_attention.mutants.kernel import ByTwos, Kernel
from xattn_conformance.ops.merge_attention.problem import Merge
from xattn_conformance.tolerance.arithmetic import CANONICAL, Arithmetic

Condition = Callable[[Merge], bool]
Change = Callable[[Merge], Merge]


def _always(problem: Merge) -> bool:
    return True


def _several(problem: Merge) -> bool:
    return problem.parts > 1


def _computes(problem: Merge) -> bool:
    return problem.outs.size > 0


def _more(parts: int = 1, nheads: int = 1, seqlen: int = 1) -> Condition:
    """Whether there are more of each than these."""

    def more(problem: Merge) -> bool:
        return problem.parts >= parts and problem.outs.shape[3] >= nheads and problem.outs.shape[2] >= seqlen

    return more


def _some(lse: float) -> Condition:
    return lambda problem: bool((problem.lses == lse).any())


def _dead(problem: Merge) -> bool:
    return bool((problem.lses == -np.inf).all(axis=0).any())


def _misstep(
    name: str,
    wrong: str,
    kernel: type[Kernel],
    applies: Condition = _always,
    equivalent_in: Mapping[str, str] = NOWHERE,
) -> Mutant:
    """A kernel with one wrong step."""
    return Mutant(
        f"merge-{name}",
        wrong,
        lambda problem, arithmetic: kernel(problem, arithmetic).run(),
        lambda problem: _computes(problem) and problem.dout is None and applies(problem),
        equivalent_in,
    )


def _misread(name: str, wrong: str, change: Change, applies: Condition) -> Mutant:
    """A right kernel for another problem."""
    return Mutant(
        f"merge-{name}",
        wrong,
        lambda problem, arithmetic: Kernel(change(problem), arithmetic).run(),
        lambda problem: _computes(problem) and problem.dout is None and applies(problem),
    )


def _backward(name: str, wrong: str, kernel: type[Kernel], applies: Condition = _several) -> Mutant:
    """A right forward; the backward has one wrong step."""
    return Mutant(
        f"merge-{name}",
        wrong,
        lambda problem, arithmetic: kernel(problem, arithmetic).run(),
        lambda problem: _computes(problem) and problem.dout is not None and applies(problem),
        backward=True,
    )


def _rolled(axis: int) -> Change:
    return lambda problem: replace(problem, lses=np.roll(problem.lses, 1, axis=axis))


def _other_axes(problem: Merge) -> Merge:
    """The memory of an lse, read as (batch, seqlen, nheads)."""
    parts, batch, nheads, seqlen = problem.lses.shape
    return replace(problem, lses=np.swapaxes(problem.lses.reshape(parts, batch, seqlen, nheads), -1, -2))


def _first(count: int) -> Change:
    return lambda problem: replace(problem, outs=problem.outs[:count], lses=problem.lses[:count])


def _nan_is_nothing(problem: Merge) -> Merge:
    return replace(problem, lses=np.where(np.isnan(problem.lses), -np.inf, problem.lses))


def _has_nan(problem: Merge) -> bool:
    return bool(np.isnan(problem.lses).any())


MUTANTS = (
    _misstep("base-2", "the lses are to the base 2", kernels.BaseTwo, _several),
    _misstep("unnormalised", "the weights are not normalised", kernels.Unnormalised, _several),
    _misstep("alike", "every part has the same weight", kernels.Alike, _several),
    _misstep("unshifted", "the largest lse is not taken off before the exponential", kernels.Unshifted),
    _misstep("reads-all", "an out whose lse is -inf is read", kernels.ReadsAll, _some(-np.inf)),
    _misstep("dead-nan", "a row without a part divides 0 by 0", kernels.ZeroByZero, _dead),
    _misstep("dead-lse", "a row without a part has an lse of 0", kernels.DeadLseZero, _dead),
    _misstep("sink", "a sink joins the denominator", kernels.WithSink),
    _misstep("shares-in-dtype", "the weights are rounded to the dtype", kernels.SharesInDtype, _several, IN_FLOAT32),
    _misstep("rounded-between", "out is rounded after each part", kernels.RoundedBetween, _more(parts=3), IN_FLOAT32),
    _misstep("largest-lse", "the lse is that of the largest part", kernels.LargestLse, _several),
    _misstep("lse-in-dtype", "the lse is rounded to the dtype", kernels.LseInDtype, _always, IN_FLOAT32),
    _misread("row", "the lses are those of the row before", _rolled(3), _more(parts=2, seqlen=2)),
    _misread("head", "the lses are those of the head before", _rolled(2), _more(parts=2, nheads=2)),
    _misread("part", "the lses are those of the part before", _rolled(0), _several),
    _misread("axes", "the axes of an lse are exchanged", _other_axes, _more(parts=2, nheads=2, seqlen=2)),
    _misread("last", "the last part is left out", lambda p: _first(p.parts - 1)(p), _several),
    _misread("two", "parts past the second are left out", _first(2), _more(parts=3)),
    _misread("nan", "a NaN among the lses is taken for -inf", _nan_is_nothing, _has_nan),
    _backward("douts-whole", "every part gets all of dout", kernels.DoutWhole),
    _backward("douts-alike", "every part gets the same share of dout", kernels.DoutAlike),
    _backward("dlses-without-out", "the lses get nothing from dout", kernels.WithoutOut),
    _backward("dlses-without-mean", "out is not taken off before the lses get theirs from dout", kernels.WithoutMean),
    _backward("dlses-without-lse", "the lses get nothing from dlse", kernels.WithoutLse, _always),
    _backward("dlses-unweighted", "every lse gets all of dlse", kernels.UnweightedLse),
)


def _right(name: str, arithmetic: Arithmetic, kernel: type[Kernel], forward: bool = False) -> Right:
    def serves(problem: Merge) -> bool:
        return problem.dout is None or not forward

    return Right(f"merge, {name}", arithmetic, partial(_run, kernel, arithmetic), serves)


def _run(kernel: type[Kernel], arithmetic: Arithmetic, problem: Merge) -> Results:
    return kernel(problem, arithmetic).run()


RIGHT = (
    _right("all parts at once", CANONICAL, Kernel),
    _right("two parts at a time", CANONICAL, ByTwos, forward=True),
    _right("exp of 10 bits", Arithmetic(exp_bits=10), Kernel),
    _right("subnormals flushed", Arithmetic(subnormals="flushed"), Kernel),
)
