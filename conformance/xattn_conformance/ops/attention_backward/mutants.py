"""Kernels that take a part of the keys for all, or misread what is given. What is attention's comes from the bridge."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from xattn_conformance.array import Array
from xattn_conformance.mutants.mutant import Mutant, Results, Right
from xattn_conformance.ops.attention_backward.problem import Share, positional
from xattn_conformance.ops.attention_like import BACKWARDS, RIGHT, Backward, Problem, attend
from xattn_conformance.tolerance.arithmetic import Arithmetic

Given = dict[str, Array]
NAMES = ("dq", "dk", "dv")


def given(problem: Share) -> Given:
    """out and lse as a forward kernel returns them: (batch, nheads, seqlen_q, columns)."""
    out, lse = problem.results
    return {"out": out.transpose(0, 2, 1, 3), "lse": lse[..., None]}


def share(part: Problem, arithmetic: Arithmetic, results: Given) -> Results:
    """What a right kernel returns for these keys and results."""
    return Backward(part, arithmetic, results).run()


def misread(
    name: str,
    wrong: str,
    applies: Callable[[Share], bool],
    results: Callable[[Share, Arithmetic], Given] = lambda problem, arithmetic: given(problem),
    part: Callable[[Share], Problem] = lambda problem: problem.part,
) -> Mutant:
    """A right kernel of other results or other keys."""
    return Mutant(
        f"share-{name}",
        wrong,
        lambda problem, arithmetic: share(part(problem), arithmetic, results(problem, arithmetic)),
        applies,
        backward=True,
    )


def own(*names: str) -> Callable[[Share, Arithmetic], Given]:
    """Those of the given keys alone, in place of what is given."""

    def results(problem: Share, arithmetic: Arithmetic) -> Given:
        alone = attend(problem.part, arithmetic)
        return {**given(problem), **{name: alone[name] for name in names}}

    return results


def lse_times(factor: float) -> Callable[[Share, Arithmetic], Given]:
    return lambda problem, arithmetic: {**given(problem), "lse": given(problem)["lse"] * factor}


def neighbours(problem: Share, arithmetic: Arithmetic) -> Given:
    return {**given(problem), "lse": np.roll(given(problem)["lse"], 1, axis=2)}


def computes(problem: Share) -> bool:
    return 0 not in problem.part.scores_shape


def of_a_part(problem: Share) -> bool:
    return computes(problem) and not problem.all_keys


def several_queries(problem: Share) -> bool:
    return computes(problem) and problem.whole.q.shape[1] > 1


OWN = (
    misread("own-softmax", "the lse is that of the given keys, not the given one", of_a_part, own("lse")),
    misread("own-out", "delta is made of the given keys' out, not of the given out", of_a_part, own("out")),
    misread("base-2", "the lse is taken for a logarithm to base 2", computes, lse_times(float(np.log(2.0)))),
    misread("lse-of-neighbour", "a query's lse is its neighbour's", several_queries, neighbours),
    misread(
        "own-corner",
        "the diagonal is that of the given keys alone",
        lambda problem: of_a_part(problem) and positional(problem),
        part=lambda problem: replace(problem.part, align="bottom_right"),
    ),
)


def _inherited(mutant: Mutant) -> Mutant:
    def run(problem: Share, arithmetic: Arithmetic) -> Results:
        found = mutant.run(problem.whole, arithmetic)
        return {name: found[name] for name in NAMES}

    def applies(problem: Share) -> bool:
        return problem.all_keys and mutant.applies(problem.whole)

    return replace(mutant, name=f"attention_backward:{mutant.name}", run=run, applies=applies, inherited=True)


def _right(kernel: Right) -> Right:
    def run(problem: Share) -> Results:
        return share(problem.part, kernel.arithmetic, given(problem))

    return Right(f"attention_backward: {kernel.name}", kernel.arithmetic, run, computes, inherited=True)


# What is wrong with gradients that these calls do not have, or with a sink, which is in the lse here.
_OTHERS = ("dlse", "dbias", "dsinks", "sink", "dropout")
MUTANTS = (*OWN, *(_inherited(each) for each in BACKWARDS if not any(word in each.name for word in _OTHERS)))
RIGHTS = tuple(_right(kernel) for kernel in RIGHT if "SDPA" not in kernel.name)
