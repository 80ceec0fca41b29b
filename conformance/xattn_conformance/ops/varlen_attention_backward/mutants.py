"""Backward kernels that misread what a forward call returned. What is attention's, and what is wrong with the layout,
comes from varlen_attention."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from xattn_conformance.array import Array
from xattn_conformance.mutants.mutant import Mutant, Results, Right
from xattn_conformance.ops.attention_like import RIGHT, attend
from xattn_conformance.ops.attention_like import Backward as Kernel
from xattn_conformance.ops.varlen_attention.problem import joined
from xattn_conformance.ops.varlen_attention_backward.problem import Backward
from xattn_conformance.tolerance.arithmetic import Arithmetic

Given = list[dict[str, Array]]
NAMES = ("dq", "dk", "dv")


def gradients(problem: Backward, arithmetic: Arithmetic, given: Given) -> Results:
    """What a right kernel returns for these results of the forward."""
    parts = [Kernel(part, arithmetic, each).run() for part, each in zip(problem.parts, given, strict=True)]
    return {name: joined(problem.whole, name, [part[name] for part in parts], 0.0) for name in NAMES}


def misread(
    name: str, wrong: str, change: Callable[[Backward, Arithmetic], Given], applies: Callable[[Backward], bool]
) -> Mutant:
    def run(problem: Backward, arithmetic: Arithmetic) -> Results:
        return gradients(problem, arithmetic, change(problem, arithmetic))

    return Mutant(f"varlen-share-{name}", wrong, run, applies, backward=True)


def base_2(problem: Backward, arithmetic: Arithmetic) -> Given:
    return [{**each, "lse": each["lse"] * float(np.log(2.0))} for each in problem.given]


def rolled(name: str) -> Callable[[Backward, Arithmetic], Given]:
    """Of the token before, which may be another sequence's."""

    def change(problem: Backward, arithmetic: Arithmetic) -> Given:
        every = np.roll(np.concatenate([each[name] for each in problem.given], axis=2), 1, axis=2)
        ends = np.cumsum([each[name].shape[2] for each in problem.given])[:-1]
        return [{**each, name: part} for each, part in zip(problem.given, np.split(every, ends, axis=2), strict=True)]

    return change


def own(problem: Backward, arithmetic: Arithmetic) -> Given:
    """The softmax is computed anew, without the sink's weight."""
    alone = [attend(replace(part, sinks=None), arithmetic) for part in problem.parts]
    return [{**each, "lse": mine["lse"]} for each, mine in zip(problem.given, alone, strict=True)]


def computes(problem: Backward) -> bool:
    return any(0 not in part.scores_shape for part in problem.parts)


def several(problem: Backward) -> bool:
    return sum(0 not in part.scores_shape for part in problem.parts) > 1


OWN = (
    misread("base-2", "the lse is taken for a logarithm to base 2", base_2, computes),
    misread("lse-of-neighbour", "a query's lse is its neighbour's", rolled("lse"), several),
    misread("out-of-neighbour", "a query's out is its neighbour's", rolled("out"), several),
    misread("own-softmax", "the lse is computed anew, and lacks the sink", own,
            lambda p: computes(p) and p.whole.sinks is not None),
)  # fmt: skip

# What is wrong with gradients that these calls do not have, or with a sink, which is in the lse here.
_OTHERS = ("dlse", "dsinks", "sink")


def inherited(mutants: tuple[Mutant, ...]) -> tuple[Mutant, ...]:
    """Of varlen_attention's those that are wrong in dq, dk or dv."""
    return tuple(
        _inherited(mutant) for mutant in mutants if mutant.backward and not any(word in mutant.name for word in _OTHERS)
    )


def _inherited(mutant: Mutant) -> Mutant:
    def run(problem: Backward, arithmetic: Arithmetic) -> Results:
        found = mutant.run(problem.whole, arithmetic)
        return {name: found[name] for name in NAMES}

    def applies(problem: Backward) -> bool:
        return mutant.applies(problem.whole)

    name = f"varlen_attention_backward:{mutant.name.rpartition(':')[2]}"
    return replace(mutant, name=name, run=run, applies=applies, inherited=True)


def _right(kernel: Right) -> Right:
    def run(problem: Backward) -> Results:
        return gradients(problem, kernel.arithmetic, problem.given)

    return Right(f"varlen_attention_backward: {kernel.name}", kernel.arithmetic, run, computes, inherited=True)


RIGHTS = tuple(_right(kernel) for kernel in RIGHT if "SDPA" not in kernel.name)
