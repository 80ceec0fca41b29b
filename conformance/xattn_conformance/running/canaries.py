"""Kernels that are known to be wrong, sent through a run's own comparison: a harness that fails nothing shows here."""

from __future__ import annotations

import datetime
from collections.abc import Sequence

from xattn_conformance.mutants.mutant import Mutant
from xattn_conformance.mutants.witnesses import witnesses_in
from xattn_conformance.mutants.zoo import OWN
from xattn_conformance.ops.registry import OPS
from xattn_conformance.result import Canary
from xattn_conformance.running.target import Target
from xattn_conformance.tolerance.compare import compare

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


def _catch(mutant: Mutant, dtype: str, target: Target) -> Canary:
    cases = {case.id: case for op in OPS.values() for case in op.cases()}
    tried = witnesses_in(mutant.name, dtype)
    for name in tried:
        case = cases[name]
        op, arithmetic = OPS[case.op], target.arithmetic(case)
        problem = op.problem(case)
        failed = compare(op.expected(case, problem, arithmetic), mutant.run(problem, arithmetic)).failed
        if failed:
            first = failed[0]
            return Canary(name=mutant.name, case=name, caught_by=first.name, value=first.value, limit=first.limit)
    return Canary(name=mutant.name, case=", ".join(tried), caught_by="", value=None, limit=0.0)
