"""The bridge for ops that are attention in another layout: packed sequences, paged keys, chosen keys.

Such an op says which attention problems its own problem is made of, one a sequence, and where their rows lie in its
results. Goldens, noise and kernels, right ones and wrong ones, are attention's. The op adds its layout, cases and
variations, and its own ways to go wrong.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any, ClassVar, TypeVar

import msgspec
import numpy as np

from xattn_conformance.array import Array
from xattn_conformance.case import Case
from xattn_conformance.inputs.draw import Draw
from xattn_conformance.mutants.mutant import Mutant, Results, Right
from xattn_conformance.ops.attention import oracle as oracle
from xattn_conformance.ops.attention import rowwise as rowwise
from xattn_conformance.ops.attention.families import FAMILIES
from xattn_conformance.ops.attention.families import STREAMS as STREAMS
from xattn_conformance.ops.attention.inputs import bits as bits
from xattn_conformance.ops.attention.inputs import differentiated, make, rounded
from xattn_conformance.ops.attention.mutants.backward import Backward as Backward
from xattn_conformance.ops.attention.mutants.backwards import BACKWARDS as BACKWARDS
from xattn_conformance.ops.attention.mutants.kernel import attend as attend
from xattn_conformance.ops.attention.mutants.masks import MASKS
from xattn_conformance.ops.attention.mutants.options import ALIBI, LAYOUT, SCALE, SOFTCAP_AND_SINKS
from xattn_conformance.ops.attention.mutants.returns import RETURNS
from xattn_conformance.ops.attention.mutants.right import RIGHT as RIGHT
from xattn_conformance.ops.attention.mutants.steps import STEPS
from xattn_conformance.ops.attention.mutants.ways import answer
from xattn_conformance.ops.attention.noise import forward
from xattn_conformance.ops.attention.noise import gradient as gradient
from xattn_conformance.ops.attention.options import band as band
from xattn_conformance.ops.attention.options import features as features
from xattn_conformance.ops.attention.options import normal as normal
from xattn_conformance.ops.attention.options import title as title
from xattn_conformance.ops.attention.options import window as window
from xattn_conformance.ops.attention.problem import Problem as Problem
from xattn_conformance.ops.attention.recipes import Sizes, alibi_slopes, sinks
from xattn_conformance.ops.attention.table import sizes as sizes
from xattn_conformance.ops.attention.variations import at_the_end as at_the_end
from xattn_conformance.ops.attention.variations import batch as batch
from xattn_conformance.ops.attention.variations import off_alignment as off_alignment
from xattn_conformance.ops.attention.variations import packed as packed
from xattn_conformance.ops.attention.variations import some as some
from xattn_conformance.ops.attention.variations import strides_of_0 as strides_of_0
from xattn_conformance.ops.attention.variations import twice as twice
from xattn_conformance.ops.attention.visibility import FILLS as FILLS
from xattn_conformance.ops.attention.visibility import filling as filling
from xattn_conformance.ops.attention.visibility import poisoned_with as poisoned_with
from xattn_conformance.ops.base import Op
from xattn_conformance.tolerance.arithmetic import Arithmetic
from xattn_conformance.tolerance.expected import Expected

P = TypeVar("P")

# What a row of a result holds that belongs to no sequence; of a gradient 0.
NOBODYS = {"out": 0.0, "lse": -np.inf}
# Mutants of attention that one sequence can show: not those that take one batch row for another, nor those of options
# that only padded batches have.
_OF_BATCHES = ("seqlens", "alibi-of-row-0", "batch-of-row-0", "dbias", "grad-bias", "grad-mask")
_OF_SEQUENCES = tuple(
    mutant
    for mutant in (*MASKS, *SCALE, *SOFTCAP_AND_SINKS, *ALIBI, *LAYOUT, *STEPS, *RETURNS, *BACKWARDS)
    if not any(words in mutant.name for words in _OF_BATCHES)
)


class AttentionLikeOp(Op[P]):
    """An op whose results are "out", "lse" and, where it is differentiable, gradients of attention problems, a batch of
    1 each.

    lacks: words in the names of attention's mutants that are of options which the op does not have.
    """

    differentiable: ClassVar[bool] = False
    lacks: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def sequences(self, problem: P) -> list[Problem]:
        """One attention problem a sequence."""

    @abstractmethod
    def joined(self, problem: P, name: str, parts: Sequence[Array], nobodys: float) -> Array:
        """The result "out", "lse", "dq", "dk" or "dv" from its parts, (1, heads, rows, columns) each, in the order of
        `sequences`; rows of no sequence hold `nobodys`."""

    @abstractmethod
    def returns_lse(self, problem: P) -> bool:
        """Whether the lse is asked for."""

    def grads(self, problem: P) -> tuple[str, ...]:
        """The tensors whose gradients are asked for: "q", "k", "v", "sinks"."""
        return ()

    def own_mutants(self) -> Sequence[Mutant]:
        """Kernels that get the layout wrong."""
        return ()

    def expected(self, case: Case, problem: P, arithmetic: Arithmetic) -> Mapping[str, Expected]:
        parts = [_expected(sequence, arithmetic) for sequence in self.sequences(problem)]
        names = ["out", *(["lse"] if self.returns_lse(problem) else []), *(f"d{name}" for name in self.grads(problem))]
        return {name: self._joined(problem, name, [part[name] for part in parts]) for name in names}

    def _joined(self, problem: P, name: str, parts: Sequence[Expected]) -> Expected:
        if name == "dsinks":  # one number a head, to which every sequence adds
            variance = sum(part.sigma**2 for part in parts)
            return Expected(np.asarray(sum(part.value for part in parts)), np.sqrt(variance))

        def whole(arrays: Sequence[Array], nobodys: float = 0.0) -> Array:
            return self.joined(problem, name, arrays, nobodys)

        return Expected(
            value=whole([part.value for part in parts], NOBODYS.get(name, 0.0)),
            sigma=whole([part.sigma for part in parts]),
            slack=whole([np.broadcast_to(part.slack, part.value.shape) for part in parts]),
            common=whole([np.zeros_like(part.value) if part.common is None else part.common for part in parts]),
        )

    def answer(self, problem: P, parts: Sequence[Results]) -> Results:
        """Results of the op from those of its sequences; a kernel may have no lse to return."""
        every = (*NOBODYS, *(f"d{name}" for name in self.grads(problem)))
        names = [name for name in every if all(name in part for part in parts)]
        found = {name: [part[name] for part in parts] for name in names}
        return {
            name: np.asarray(sum(each))
            if name == "dsinks"
            else self.joined(problem, name, each, NOBODYS.get(name, 0.0))
            for name, each in found.items()
        }

    def mutants(self) -> Sequence[Mutant]:
        return _all_mutants(self)

    def right_kernels(self) -> Sequence[Right]:
        return [_right(self, kernel) for kernel in RIGHT]


def _expected(sequence: Problem, arithmetic: Arithmetic) -> dict[str, Expected]:
    found = forward.expected(sequence, arithmetic)
    return {**found, **(gradient.expected(sequence, arithmetic) if sequence.grads else {})}


def whole_problem(case: Case) -> Problem:
    """The problem of attention that a case's shape, family and options are of, with gradients of q, k and v."""
    return make(msgspec.structs.replace(case, grads=("qkv",)))


def right_answer(problem: Problem, arithmetic: Arithmetic) -> Results:
    """What a right kernel returns for one sequence."""
    return answer(problem, arithmetic)


def slow_answer(problem: Problem) -> Results:
    """By the oracle that is written apart from the goldens' own, (1, heads, rows, columns)."""
    out, lse = rowwise.forward(problem)
    found = {"out": out.transpose(0, 2, 1, 3), "lse": lse[..., None]}
    if not problem.grads:
        return found
    assert problem.dout is not None
    grads = rowwise.backward(problem, problem.dout, np.zeros_like(lse) if problem.dlse is None else problem.dlse)
    shaped = {name: grad.reshape(1, -1, 1, 1) if grad.ndim == 1 else grad.transpose(0, 2, 1, 3)
              for name, grad in grads.items() if name in problem.grads}  # fmt: skip
    return {**found, **{f"d{name}": grad for name, grad in shaped.items()}}


def drawn(
    family: str,
    draw: Draw,
    dtype: str,
    queries: tuple[int, int, int],
    keys: tuple[int, int, int],
    grads: tuple[str, ...] = (),
    **options: Any,
) -> Problem:
    """One sequence of a family of attention's: queries (seqlen_q, nheads, headdim), keys (seqlen_k, nheads_k,
    headdim_v); the gradients that are asked for, and what comes in for them."""
    if family not in FAMILIES:
        raise ValueError(f"no family {family!r}; known: {', '.join(FAMILIES)}")
    problem = Problem(
        dtype=dtype,
        q=draw.normal("q", (1, *queries)),
        k=draw.normal("k", (1, *keys[:2], queries[2])),
        v=draw.normal("v", (1, *keys)),
        **options,
    )
    return rounded(differentiated(FAMILIES[family](problem, draw), grads, family, draw))


def drawn_sinks(recipe: str, nheads: int, seqlen_k: int, draw: Draw) -> Array:
    """(nheads,), by a recipe of attention's."""
    return sinks(recipe, Sizes(1, nheads, 1, seqlen_k), draw).astype(np.float32).astype(np.float64)


def drawn_slopes(recipe: str, batch: int, nheads: int, draw: Draw) -> Array:
    """(nheads,) or (batch, nheads), by a recipe of attention's."""
    return alibi_slopes(recipe, Sizes(batch, nheads, 1, 1), draw).astype(np.float32).astype(np.float64)


@cache
def _all_mutants(op: AttentionLikeOp[Any]) -> tuple[Mutant, ...]:
    inherited = [
        mutant
        for mutant in _OF_SEQUENCES
        if (op.differentiable or not mutant.backward) and not any(word in mutant.name for word in op.lacks)
    ]
    return (*op.own_mutants(), *(_inherited(op, mutant) for mutant in inherited))


def _inherited(op: AttentionLikeOp[P], mutant: Mutant) -> Mutant:
    """Attention's mutant on every sequence that shows it, and right on the others."""

    def run(problem: P, arithmetic: Arithmetic) -> Results:
        kernels = [(mutant.run if mutant.applies(each) else answer, each) for each in op.sequences(problem)]
        return op.answer(problem, [kernel(each, arithmetic) for kernel, each in kernels])

    def applies(problem: P) -> bool:
        return any(mutant.applies(each) for each in op.sequences(problem))

    return replace(mutant, name=f"{op.name}:{mutant.name}", run=run, applies=applies, inherited=True)


def _right(op: AttentionLikeOp[P], kernel: Right) -> Right:
    def run(problem: P) -> Results:
        return op.answer(problem, [kernel.run(each) for each in op.sequences(problem)])

    def serves(problem: P) -> bool:
        return all(kernel.serves(each) for each in op.sequences(problem))

    return Right(f"{op.name}: {kernel.name}", kernel.arithmetic, run, serves, inherited=True)
