"""Every mutant: wrong kernels that must not pass. What becomes of each is in docs/mutants.md."""

from __future__ import annotations

from xattn_conformance.mutants.backwards import BACKWARDS
from xattn_conformance.mutants.masks import MASKS
from xattn_conformance.mutants.mutant import Mutant
from xattn_conformance.mutants.options import OPTIONS
from xattn_conformance.mutants.returns import RETURNS
from xattn_conformance.mutants.steps import STEPS

MUTANTS: tuple[Mutant, ...] = (*MASKS, *OPTIONS, *STEPS, *RETURNS, *BACKWARDS)
