"""Impostors of attention: see `Impostor`."""

from xattn_conformance.ops.attention.mutants.impostors.dropout import DROPOUT
from xattn_conformance.ops.attention.mutants.impostors.gradients import GRADIENTS
from xattn_conformance.ops.attention.mutants.impostors.layouts import LAYOUTS
from xattn_conformance.ops.attention.mutants.impostors.leftovers import LEFT
from xattn_conformance.ops.attention.mutants.impostors.state import STATE

IMPOSTORS = (*LAYOUTS, *STATE, *LEFT, *GRADIENTS, *DROPOUT)
