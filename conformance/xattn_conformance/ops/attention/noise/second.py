"""Golden second derivatives: how the golden gradients change along a direction.

They are symmetric, so this is the gradient of the sum of all first ones times their directions, which a backend is
asked for. Kernels have none, so what is judged is autograd through plain PyTorch; and what must show is a part that is
missing, which is as large as the whole. So the noise is a bound and no model: some roundings in the dtype, and many in
float32, of whatever adds up to the result.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import sqrt

import numpy as np

from xattn_conformance.array import Array
from xattn_conformance.case import Case
from xattn_conformance.inputs.draw import Draw
from xattn_conformance.inputs.formats import round_to
from xattn_conformance.ops.attention.families import STREAMS
from xattn_conformance.ops.attention.noise import gradient
from xattn_conformance.ops.attention.problem import Problem
from xattn_conformance.tolerance.arithmetic import Arithmetic
from xattn_conformance.tolerance.expected import Expected
from xattn_conformance.tolerance.rounding import coarse, rounding, square
from xattn_conformance.tolerance.units import SINGLE, UNITS

# Of differences of the fourth order: what they leave out and what float64 rounds are both some 1e-12 of the result.
_STEP = 2.0**-10
_ROUNDINGS, _SINGLE_ROUNDINGS = 16, 1024


def directions(case: Case, problem: Problem) -> dict[str, Array]:
    """One for each gradient of the case, in the dtype and shape of its tensor."""
    draw = Draw(case.seed, STREAMS)
    return {
        name: round_to(
            draw.normal(f"along.{name}", getattr(problem, name).shape),
            "float32" if name == "sinks" else problem.dtype,
        )
        for name in problem.grads
    }


def expected(problem: Problem, along: Mapping[str, Array], arithmetic: Arithmetic) -> dict[str, Expected]:
    """dq, dk, dv, ... as `gradient.expected` lays them out."""

    def moved(steps: int) -> dict[str, Expected]:
        there = {name: getattr(problem, name) + steps * _STEP * each for name, each in along.items()}
        return gradient.expected(replace(problem, **there), arithmetic)

    two_back, back, here, on, two_on = (moved(steps) for steps in (-2, -1, 0, 1, 2))
    found = {}
    for name, first in here.items():
        near, far = on[name].value - back[name].value, two_on[name].value - two_back[name].value
        value = (8 * near - far) / (12 * _STEP)
        own = SINGLE if name == "dsinks" else UNITS[problem.dtype]
        relative = _ROUNDINGS * (UNITS[problem.dtype].u ** 2 + coarse(problem.dtype, arithmetic))
        relative += _SINGLE_ROUNDINGS * SINGLE.u**2
        size = sqrt(square(value).mean()) if value.size else 0.0
        variance = relative * size**2 + rounding(own, square(value))
        # What has no first derivative, by the contract, has none.
        there = first.sigma > 0
        found[name] = Expected(np.where(there, value, 0.0), np.where(there, np.sqrt(variance), 0.0))
    return found
