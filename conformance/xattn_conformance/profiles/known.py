"""The cases by id, with their problems and goldens kept for the process: waivers and mutants come back to the same."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np

from xattn_conformance.case import Case
from xattn_conformance.ops.registry import OPS
from xattn_conformance.tolerance.arithmetic import Arithmetic
from xattn_conformance.tolerance.compare import every_check
from xattn_conformance.tolerance.expected import Expected


@functools.cache
def cases() -> dict[str, Case]:
    """Every case of every op."""
    return {case.id: case for op in OPS.values() for case in op.cases()}


@functools.cache
def problem(case: str) -> Any:
    """The inputs of a case, in its op's own words."""
    known = cases()[case]
    return OPS[known.op].problem(known)


@functools.cache
def golden(case: str, arithmetic: Arithmetic) -> Mapping[str, Expected]:
    known = cases()[case]
    return OPS[known.op].expected(known, problem(case), arithmetic)


def checks(case: str, arithmetic: Arithmetic) -> set[str]:
    """The names of the checks that a waiver of the case may raise: comparisons with the golden, and of bits. What a
    result is (its shape, dtype, device) and whether inputs were written to is no matter of degree."""
    known = cases()[case]
    expected = golden(case, arithmetic)
    results = {name: _zeros(one) for name, one in expected.items() if one.part is None}
    names = {check.name for check in every_check(expected, results)}
    names |= set(OPS[known.op].wanted(known).by_chance)
    bits = {f"{result}.bits" for result in results}
    return names | {f"{variation}:{name}" for variation in known.variations for name in names | bits}


def _zeros(expected: Expected) -> Any:
    """A whole result with every row that `expected` looks at."""
    batch, heads, rows, columns = expected.value.shape
    last = rows if expected.rows is None else int(expected.rows.max(initial=-1)) + 1
    return np.zeros((batch, heads, last, columns))
