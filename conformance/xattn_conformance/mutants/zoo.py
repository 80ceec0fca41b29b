"""The wrong kernels of all ops, which must not pass, and the right ones. What becomes of each is in docs/mutants.md."""

from __future__ import annotations

from xattn_conformance.mutants.mutant import Mutant, Right
from xattn_conformance.ops.registry import OPS

MUTANTS: tuple[Mutant, ...] = tuple(mutant for op in OPS.values() for mutant in op.mutants())
# Those that every profile is tried on, and canaries are taken from.
OWN: tuple[Mutant, ...] = tuple(mutant for mutant in MUTANTS if not mutant.inherited)
RIGHT: tuple[Right, ...] = tuple(kernel for op in OPS.values() for kernel in op.right_kernels())
