"""The noise of a rotation: two products and their sum in float32, and one rounding to the dtype."""

from __future__ import annotations

import numpy as np

from xattn_conformance.array import Array
from xattn_conformance.ops.apply_rotary import oracle
from xattn_conformance.ops.apply_rotary.problem import Rotary
from xattn_conformance.tolerance.expected import Expected
from xattn_conformance.tolerance.rounding import rounding, square
from xattn_conformance.tolerance.units import SINGLE, UNITS


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
    value = oracle.rotated(x, problem.cos, sin, problem.interleaved)
    first, second = oracle.places(problem.cos.shape[-1], problem.interleaved)
    c, s = problem.cos[..., None, :], sin[..., None, :]
    sigma = np.zeros_like(value)  # what passes through, passes through exactly
    for own, other in ((first, second), (second, first)):
        size = square(value[..., own])
        variance = SINGLE.u**2 / 3 * (square(x[..., own] * c) + square(x[..., other] * s) + size)
        variance = variance + SINGLE.smallest**2 / 4
        if problem.dtype != "float32":
            variance = variance + rounding(UNITS[problem.dtype], size)
        # Quarter turns round nothing.
        exact = (np.abs(c) + np.abs(s) == 1) & (c * s == 0)
        sigma[..., own] = np.where(exact, 0.0, np.sqrt(variance))
    return Expected(as_heads(value), as_heads(sigma))
