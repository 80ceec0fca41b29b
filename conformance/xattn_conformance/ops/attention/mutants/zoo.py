"""Every mutant of attention. What becomes of each is in docs/mutants.md."""

from __future__ import annotations

from xattn_conformance.mutants.mutant import Mutant
from xattn_conformance.ops.attention.mutants.backwards import BACKWARDS
from xattn_conformance.ops.attention.mutants.ends import ENDS
from xattn_conformance.ops.attention.mutants.masks import MASKS
from xattn_conformance.ops.attention.mutants.options import OPTIONS
from xattn_conformance.ops.attention.mutants.places import PLACES
from xattn_conformance.ops.attention.mutants.returns import RETURNS
from xattn_conformance.ops.attention.mutants.steps import STEPS

MUTANTS: tuple[Mutant, ...] = (*MASKS, *OPTIONS, *STEPS, *RETURNS, *PLACES, *ENDS, *BACKWARDS)
