"""Kernels of apply_rotary that are wrong, each in one known way, and right ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from xattn_conformance.array import Array
from xattn_conformance.inputs.formats import round_to
from xattn_conformance.mutants.mutant import IN_FLOAT32, NOWHERE, Mutant, Right
from xattn_conformance.ops.apply_rotary.mutants import wrong as kernels
from xattn_conformance.ops.apply_rotary.mutants.kernel import Fused, Kernel
from xattn_conformance.ops.apply_rotary.problem import Rotary
from xattn_conformance.tolerance.arithmetic import CANONICAL

Condition = Callable[[Rotary], bool]
Change = Callable[[Rotary], Rotary]


def _always(problem: Rotary) -> bool:
    return True


def _has_k(problem: Rotary) -> bool:
    return problem.k is not None and problem.k.size > 0


def _rest(problem: Rotary) -> bool:
    """Whether dimensions pass through."""
    return bool(2 * problem.cos.shape[-1] < problem.q.shape[-1])


def _rest_of_pairs(problem: Rotary) -> bool:
    """Whether pairs of dimensions pass through."""
    return bool(problem.cos.shape[-1] < problem.q.shape[-1] // 2)


def _several_pairs(problem: Rotary) -> bool:
    return bool(problem.cos.shape[-1] > 1)


def _several_rows(problem: Rotary) -> bool:
    return bool(problem.cos.shape[-2] > 1)


def _several_tables(problem: Rotary) -> bool:
    return problem.cos.ndim == 3 and problem.cos.shape[0] > 1


def _wider_table(problem: Rotary) -> bool:
    return problem.table != "bfloat16"


def _other_heads_of_k(problem: Rotary) -> bool:
    return problem.k is not None and problem.k.shape[2] != problem.q.shape[2]


def _no_unit_vectors(problem: Rotary) -> bool:
    return bool((np.abs(np.hypot(problem.cos, problem.sin) - 1) > 0.1).any())


def _misstep(
    name: str,
    wrong: str,
    kernel: type[Kernel],
    applies: Condition = _always,
    equivalent_in: Mapping[str, str] = NOWHERE,
) -> Mutant:
    """A kernel with one wrong step."""
    return Mutant(
        f"rotary-{name}",
        wrong,
        lambda problem, arithmetic: kernel(problem, arithmetic).run(),
        lambda problem: problem.q.size > 0 and problem.dout is None and applies(problem),
        equivalent_in,
    )


def _misread(name: str, wrong: str, change: Change, applies: Condition = _always) -> Mutant:
    """A right kernel for another problem."""
    return Mutant(
        f"rotary-{name}",
        wrong,
        lambda problem, arithmetic: Kernel(change(problem), arithmetic).run(),
        lambda problem: problem.q.size > 0 and problem.dout is None and applies(problem),
    )


def _backward(name: str, wrong: str, kernel: type[Kernel], applies: Condition = _always) -> Mutant:
    """A right forward; the backward has one wrong step."""
    return Mutant(
        f"rotary-{name}",
        wrong,
        lambda problem, arithmetic: kernel(problem, arithmetic).run(),
        lambda problem: problem.q.size > 0 and problem.dout is not None and applies(problem),
        backward=True,
    )


def _tables(change: Callable[[Array], Array]) -> Change:
    """cos and sin both changed."""
    return lambda problem: replace(problem, cos=change(problem.cos), sin=change(problem.sin))


def _next_row(table: Array) -> Array:
    return np.roll(table, -1, axis=-2)


def _repeated(problem: Rotary) -> Rotary:
    """The tables begun again where they end, up to all of headdim."""
    pairs = np.arange(problem.q.shape[-1] // 2) % problem.cos.shape[-1]
    return _tables(lambda table: table[..., pairs])(problem)


def _unit(problem: Rotary) -> Rotary:
    size = np.hypot(problem.cos, problem.sin)
    return replace(problem, cos=problem.cos / size, sin=problem.sin / size)


MUTANTS = (
    _misread("sign", "sin has the other sign", lambda p: replace(p, sin=-p.sin)),
    _misread(
        "pairs", "the pairs are those of the other style", lambda p: replace(p, interleaved=not p.interleaved),
        _several_pairs,
    ),
    _misread("all", "what passes through is rotated", _repeated, _rest_of_pairs),
    _misread("cos-row", "cos is that of the next position", lambda p: replace(p, cos=_next_row(p.cos)), _several_rows),
    _misread("row", "cos and sin are those of the next position", _tables(_next_row), _several_rows),
    _misread(
        "batch-row", "every batch row has the tables of row 0", _tables(lambda table: table[:1]), _several_tables
    ),
    _misread(
        "cos-bfloat16", "cos is rounded to bfloat16", lambda p: replace(p, cos=round_to(p.cos, "bfloat16")),
        _wider_table,
    ),
    _misread("unit", "cos and sin are made a unit vector", _unit, _no_unit_vectors),
    _misstep("swapped", "the two of a pair stand in each other's place", kernels.HalvesSwapped),
    _misstep("rest", "what passes through is lost", kernels.RestLost, _rest),
    _misstep("q", "q is not rotated", kernels.QUnrotated),
    _misstep("k", "k is not rotated", kernels.KUnrotated, _has_k),
    _misstep("heads", "as many heads are rotated as q and k both have", kernels.SharedHeads, _other_heads_of_k),
    _misstep("in-bfloat16", "every step is rounded to bfloat16", kernels.InBfloat16),
    _misstep("in-dtype", "every step is rounded to the dtype", kernels.InDtype, _always, IN_FLOAT32),
    _backward("gradient-forward", "gradients turn the way that q and k do", kernels.GradientForward),
    _backward("gradient", "gradients are not rotated", kernels.GradientUnrotated),
    _backward("gradient-rest", "the gradients of what passes through are lost", kernels.GradientRestLost, _rest),
)  # fmt: skip


def _right(name: str, kernel: type[Kernel]) -> Right:
    return Right(f"rotary, {name}", CANONICAL, lambda problem: kernel(problem, CANONICAL).run(), _always)


RIGHT = (
    _right("each step rounded", Kernel),
    _right("fused", Fused),
)
