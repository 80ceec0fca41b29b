"""Kernels that are known to be wrong, sent through a run's own comparison: a harness that fails nothing shows here.

Before the first case a worker compares two of them. After every case the null kernel goes the whole way that the case
went: whatever the vendor's code did to the process, it must still be failed.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import msgspec
import torch
from torch import Tensor

from xattn_conformance.case import DTYPES, Case
from xattn_conformance.mutants.mutant import Mutant
from xattn_conformance.mutants.witnesses import witnesses_in
from xattn_conformance.mutants.zoo import OWN
from xattn_conformance.ops.base import Op
from xattn_conformance.ops.call import Call, Execute
from xattn_conformance.ops.registry import OPS
from xattn_conformance.result import Canary
from xattn_conformance.running.judge import served
from xattn_conformance.running.target import Target
from xattn_conformance.tolerance.compare import failures

# Answers every call with zeros; sent in every run.
NULL = "zero"


def chosen(started: datetime.datetime, dtype: str) -> tuple[str, str]:
    """The null kernel, and one mutant by the second in which the run started, so that over many runs each has its
    turn."""
    others = [
        mutant.name
        for mutant in OWN
        if mutant.name != NULL and dtype not in mutant.equivalent_in and witnesses_in(mutant.name, dtype)
    ]
    return NULL, others[int(started.timestamp()) % len(others)]


def catch(names: Sequence[str], dtype: str, target: Target) -> tuple[Canary, ...]:
    """What became of each mutant under the target's own arithmetic, in the first of its witnesses that shows it."""
    known = {mutant.name: mutant for mutant in OWN}
    return tuple(_catch(known[name], dtype, target) for name in names)


@dataclass(frozen=True)
class _Zeros(Target):
    """The null kernel in the place of the backend."""

    def run(
        self, call: Call, seed: int | None = 0, around: Callable[[Execute], Execute] | None = None
    ) -> dict[str, Tensor]:
        wanted = OPS[call.op].results(call)
        return {name: torch.zeros(layout.shape, dtype=layout.dtype) for name, layout in wanted.items()}


def fails_zeros(target: Target) -> bool:
    """Whether the null kernel, judged as a case is, fails by what it returns."""
    op, case, problem, call = _null()
    zeros = _Zeros(target.backend, "cpu", "cpu", target.profile, target.execute, target.provenance)
    fields = served(op, case, problem, call, zeros, None)
    failed = {check.name for check in fields["checks"] if not check.ok}
    return fields["status"] == "FAIL" and "out.zmax" in failed


@cache
def _null() -> tuple[Op[Any], Case, Any, Call]:
    """The first witness of the null kernel, without its variations."""
    (name, *_) = witnesses_in(NULL, DTYPES[0])
    (case,) = [case for op in OPS.values() for case in op.cases() if case.id == name]
    op = OPS[case.op]
    problem = op.problem(case)
    return op, msgspec.structs.replace(case, variations=()), problem, op.call(case, problem, "cpu")


def _catch(mutant: Mutant, dtype: str, target: Target) -> Canary:
    cases = {case.id: case for op in OPS.values() for case in op.cases()}
    tried = witnesses_in(mutant.name, dtype)
    for name in tried:
        case = cases[name]
        op, arithmetic = OPS[case.op], target.arithmetic(case)
        problem = op.problem(case)
        failed = failures(op.expected(case, problem, arithmetic), mutant.run(problem, arithmetic))
        if failed:
            first = failed[0]
            return Canary(name=mutant.name, case=name, caught_by=first.name, value=first.value, limit=first.limit)
    return Canary(name=mutant.name, case=", ".join(tried), caught_by="", value=None, limit=0.0)
