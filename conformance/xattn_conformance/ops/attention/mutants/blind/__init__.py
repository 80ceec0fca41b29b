"""Thirty wrong kernels that were written after the cases, and that no case was written for: what the suite catches
without having been told. Unlike mutants they have no witnesses, and nobody is held to catch them.

They were run once, and docs/blind-mutants.md says what became of them. Whoever adds a case that catches a survivor says
so there, and leaves the verdict.
"""

from xattn_conformance.mutants.impostor import Impostor
from xattn_conformance.mutants.mutant import Mutant
from xattn_conformance.ops.attention.mutants.blind.calls import CALLS
from xattn_conformance.ops.attention.mutants.blind.numbers import NUMBERS
from xattn_conformance.ops.attention.mutants.blind.options import OPTIONS
from xattn_conformance.ops.attention.mutants.blind.visibility import VISIBILITY

BLIND: tuple[Mutant | Impostor, ...] = (*VISIBILITY, *OPTIONS, *NUMBERS, *CALLS)
