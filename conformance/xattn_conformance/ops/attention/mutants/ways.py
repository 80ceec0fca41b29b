"""The ways in which a mutant of attention comes about: another problem, a wrong step, a changed result."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xattn_conformance.array import Array
from xattn_conformance.mutants.mutant import NOWHERE, Mutant, Results
from xattn_conformance.ops.attention.mutants.backward import Backward
from xattn_conformance.ops.attention.mutants.conditions import Change, Condition, both, computes
from xattn_conformance.ops.attention.mutants.kernel import Kernel, attend
from xattn_conformance.ops.attention.problem import Problem
from xattn_conformance.tolerance.arithmetic import Arithmetic


def answer(problem: Problem, arithmetic: Arithmetic, **how: Any) -> dict[str, Array]:
    """All that a right kernel returns: out, lse, and the gradients asked for. how: block, splits, backwards."""
    forward = attend(problem, arithmetic, **how)
    if not problem.grads:
        return forward
    how.pop("splits", None)
    return forward | Backward(problem, arithmetic, forward, **how).run()


def _forward(applies: Condition) -> Condition:
    return both(computes, lambda problem: not problem.grads, applies)


def _backward(applies: Condition) -> Condition:
    return both(computes, lambda problem: bool(problem.grads), applies)


def misread(
    name: str, wrong: str, change: Change, applies: Condition, equivalent_in: Mapping[str, str] = NOWHERE
) -> Mutant:
    """A right kernel for another problem."""
    return Mutant(
        name,
        wrong,
        lambda problem, arithmetic: attend(change(problem), arithmetic),
        _forward(applies),
        equivalent_in,
    )


def misstep(
    name: str,
    wrong: str,
    kernel: type[Kernel],
    applies: Condition,
    equivalent_in: Mapping[str, str] = NOWHERE,
    **how: Any,
) -> Mutant:
    """A kernel with one wrong step."""
    return Mutant(
        name,
        wrong,
        lambda problem, arithmetic: kernel(problem, arithmetic, **how).run(),
        _forward(applies),
        equivalent_in,
    )


def misreturn(
    name: str,
    wrong: str,
    edit: Callable[[Problem, dict[str, Array]], Results],
    applies: Condition,
    equivalent_in: Mapping[str, str] = NOWHERE,
) -> Mutant:
    """A right kernel whose results are changed."""
    return Mutant(
        name,
        wrong,
        lambda problem, arithmetic: edit(problem, attend(problem, arithmetic)),
        _forward(applies),
        equivalent_in,
    )


def backward_misread(name: str, wrong: str, change: Change, applies: Condition) -> Mutant:
    """A right forward; the backward is of another problem."""

    def run(problem: Problem, arithmetic: Arithmetic) -> Results:
        forward = attend(problem, arithmetic)
        return forward | Backward(change(problem), arithmetic, forward).run()

    return Mutant(name, wrong, run, _backward(applies), backward=True)


def backward_misstep(
    name: str,
    wrong: str,
    kernel: type[Backward],
    applies: Condition,
    equivalent_in: Mapping[str, str] = NOWHERE,
    **how: Any,
) -> Mutant:
    """A right forward; the backward has one wrong step."""

    def run(problem: Problem, arithmetic: Arithmetic) -> Results:
        forward = attend(problem, arithmetic)
        return forward | kernel(problem, arithmetic, forward, **how).run()

    return Mutant(name, wrong, run, _backward(applies), equivalent_in, backward=True)


def backward_misreturn(
    name: str, wrong: str, edit: Callable[[Problem, dict[str, Array]], Results], applies: Condition
) -> Mutant:
    """A right forward and backward whose gradients are changed."""
    return Mutant(
        name,
        wrong,
        lambda problem, arithmetic: edit(problem, answer(problem, arithmetic)),
        _backward(applies),
        backward=True,
    )


def full(x: NDArray[Any]) -> NDArray[Any]:
    """A bias or a mask with all its four axes."""
    return x.reshape((1,) * (4 - x.ndim) + x.shape)


def with_mask(problem: Problem, also: NDArray[np.bool_]) -> Problem:
    """The problem with a further mask."""
    return replace(problem, mask=also if problem.mask is None else problem.mask & also)
