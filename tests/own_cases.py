"""Attention cases that the suite does not have, judged as its own are: its inputs, goldens and comparison."""

from __future__ import annotations

from collections.abc import Mapping
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

OP = OPS["attention"]
_cases: dict[str, Case] = {}


def make(group: Group) -> list[Case]:
    """The cases of a group, as the suite's cases.toml would have it."""
    found = list(build(msgspec.structs.replace(table(), group=[group], pairs=[], knob=[])))
    _cases.update((case.id, case) for case in found)
    return found


@cache
def _problem(case: str) -> Any:
    return OP.problem(_cases[case])


@cache
def _golden(case: str, arithmetic: Arithmetic) -> Mapping[str, Expected]:
    return OP.expected(_cases[case], _problem(case), arithmetic)


def golden(case: Case, arithmetic: Arithmetic) -> Mapping[str, Expected]:
    """By the name of each result."""
    return _golden(case.id, arithmetic)


def failures(case: Case, execute: Execute, backend: str, arithmetic: Arithmetic) -> list[str]:
    """What is wrong with what `execute` returns for the case; empty where nothing is. What it raises comes through."""
    call = OP.call(case, _problem(case.id), "cpu")
    results = call.run(backend, execute)
    found = Findings()
    if not rules.look(results, OP.results(call), "cpu", found):
        return found.sentences
    got = {name: OP.layout(name, tensor) for name, tensor in results.items()}
    failed = compare(golden(case, arithmetic), got).failed
    return [*found.sentences, *(f"{check.name} is {check.value}, limit {check.limit}" for check in failed)]
