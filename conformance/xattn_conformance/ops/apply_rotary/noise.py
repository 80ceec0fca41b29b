"""The noise of a rotation: two products and their sum in float32, and one rounding to the dtype."""

from __future__ import annotations

import numpy as np

from xattn_conformance.array import Array
from xattn_conformance.ops import rotation
from xattn_conformance.ops.apply_rotary.problem import Rotary
from xattn_conformance.tolerance.expected import Expected


def expected(problem: Rotary) -> dict[str, Expected]:
    """The golden results of a call by name: out and out_k, and dq and dk, which are the inverse rotations."""
    given = {
        "out": (problem.q, problem.sin),
        "out_k": (problem.k, problem.sin),
        "dq": (problem.dout, -problem.sin),
        "dk": (problem.dout_k, -problem.sin),
    }
    return {name: _expected(problem, x, sin) for name, (x, sin) in given.items() if x is not None}


def as_heads(x: Array) -> Array:
    """(batch, seqlen, nheads, headdim) as (batch, nheads, seqlen, headdim)."""
    return np.swapaxes(x, 1, 2)


def _expected(problem: Rotary, x: Array, sin: Array) -> Expected:
    found = rotation.expected(x, problem.cos, sin, problem.interleaved, problem.dtype)
    return Expected(as_heads(found.value), as_heads(found.sigma))
