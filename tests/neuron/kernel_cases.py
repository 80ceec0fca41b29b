"""Cases in sizes that AWS's kernels take, which few of the suite's are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import own_cases
from xattn_conformance.case import Case
from xattn_conformance.ops.attention.table import Group
from xattn_conformance.ops.call import Execute
from xattn_conformance.tolerance.arithmetic import Arithmetic
from xattn_conformance.tolerance.expected import Expected

# As the profiles neuron-*standin.toml have it.
ARITHMETIC = Arithmetic(scaled_q=True)


@dataclass(frozen=True)
class Row:
    """One case, as a row of the suite's cases.toml would have it. options: pairs of a name and a value."""

    shape: str
    options: tuple[tuple[str, Any], ...] = (("causal", True),)
    family: str = "normal"
    dtype: str = "bfloat16"
    grads: str = ""


@cache
def _case(row: Row) -> Case:
    group = Group(
        why="a kernel of AWS's",
        level="extended",
        shapes=(row.shape,),
        families=(row.family,),
        options=dict(row.options),
        grads=(row.grads,),
    )
    (case,) = (case for case in own_cases.make(group) if case.dtype == row.dtype)
    return case


def golden(row: Row, arithmetic: Arithmetic = ARITHMETIC) -> Mapping[str, Expected]:
    return own_cases.golden(_case(row), arithmetic)


def failures(row: Row, execute: Execute, backend: str = "", arithmetic: Arithmetic = ARITHMETIC) -> list[str]:
    """As `own_cases.failures`."""
    return own_cases.failures(_case(row), execute, backend, arithmetic)
