"""Variances of rounding errors, as every op's noise is made of them.

Every rounding is taken as an independent error, uniform within half a unit in the last place: a variance of u^2 / 3
times the square of what is rounded. Sums of n products in float32 are a random walk.
"""

from __future__ import annotations

import numpy as np

from xattn_conformance.array import Array
from xattn_conformance.tolerance.arithmetic import Arithmetic
from xattn_conformance.tolerance.units import SINGLE, TF32, Unit

# Roundings of a number on its way through scaling, adding, subtracting the maximum and changing the base of exp.
STEPS = 4


def square(x: Array) -> Array:
    return x * x


def rounding(at: Unit, size: Array) -> Array:
    """Variance of rounding numbers whose squares are `size`."""
    return at.u**2 / 3 * size + at.smallest**2 / 12


def products(n: int, squares: Array, total: Array) -> Array:
    """Variance of a sum of n products in float32. squares: the sum of their squares; total: the square of the sum.

    Products of either sign make a random walk; those of one sign make partial sums as large as the total, a third of
    its square on average, n / 4 of them in four lanes."""
    return SINGLE.u**2 / 3 * (n * squares + (STEPS + n / 12) * total) + n * SINGLE.smallest**2 / 12


def truncation(n: int | Array, arithmetic: Arithmetic) -> Array:
    """How far below its size a sum of n products may come out, relative to the sum of their sizes. Eight products are
    taken off at a time, of a few bits below float32's last each; 9.4e-7 was seen at n = 192 on an H200."""
    bound = SINGLE.u * (np.asarray(n) / 8 + STEPS)
    return bound if arithmetic.sums == "truncated" else np.zeros_like(bound)


def coarse(dtype: str, arithmetic: Arithmetic) -> float:
    """Relative variance of a product whose operands are both rounded to TF32."""
    return 2 * TF32**2 / 3 if arithmetic.products == "tf32" and dtype == "float32" else 0.0
