"""Cases in sizes that AWS's kernels take, which few of the suite's are: its inputs, goldens and comparison on these."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import msgspec
from xattn_conformance.case import Case
from xattn_conformance.ops.attention.cases import build
from xattn_conformance.ops.attention.table import Group, table
from xattn_conformance.ops.call import Execute
from xattn_conformance.ops.registry import OPS
from xattn_conformance.running import rules
from xattn_conformance.running.rules import Findings
from xattn_conformance.tolerance.arithmetic import Arithmetic
from xattn_conformance.tolerance.compare import compare
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
def make(row: Row) -> Case:
    group = Group(
        why="a kernel of AWS's",
        level="extended",
        shapes=(row.shape,),
        families=(row.family,),
        options=dict(row.options),
        grads=(row.grads,),
    )
    alone = msgspec.structs.replace(table(), group=[group], pairs=[], knob=[])
    (case,) = (case for case in build(alone) if case.dtype == row.dtype)
    return case


@cache
def _problem(row: Row) -> Any:
    return OPS["attention"].problem(make(row))


@cache
def golden(row: Row, arithmetic: Arithmetic = ARITHMETIC) -> Mapping[str, Expected]:
    return OPS["attention"].expected(make(row), _problem(row), arithmetic)


def failures(row: Row, execute: Execute, backend: str = "", arithmetic: Arithmetic = ARITHMETIC) -> list[str]:
    """What is wrong with what `execute` returns for the case; empty where nothing is. What it raises comes through."""
    op = OPS["attention"]
    call = op.call(make(row), _problem(row), "cpu")
    results = call.run(backend, execute)
    found = Findings()
    if not rules.look(results, op.results(call), "cpu", found):
        return found.sentences
    got = {name: op.layout(name, tensor) for name, tensor in results.items()}
    failed = compare(golden(row, arithmetic), got).failed
    return [*found.sentences, *(f"{check.name} is {check.value}, limit {check.limit}" for check in failed)]
