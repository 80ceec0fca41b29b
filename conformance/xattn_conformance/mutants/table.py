"""What the comparison tells apart: every mutant, and every right kernel, over cases. `render.py` shows it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from multiprocessing import get_context
from typing import TypeVar

import numpy as np

from xattn_conformance.case import Case
from xattn_conformance.mutants.mutant import Mutant, Results, Right
from xattn_conformance.mutants.zoo import MUTANTS
from xattn_conformance.ops.registry import OPS
from xattn_conformance.reports.tally import nearness
from xattn_conformance.tolerance.arithmetic import CANONICAL, Arithmetic
from xattn_conformance.tolerance.compare import every_check
from xattn_conformance.tolerance.expected import Expected

T = TypeVar("T")

# In place of a check: whatever the check.
ANY = "any"


@dataclass(frozen=True)
class Outcome:
    """One kernel on one case.

    failed:   the checks that it failed, "out.zmax", ...; none is a pass.
    nearness: the largest value relative to its limit; inf where a rule without tolerance is broken.
    """

    kernel: str
    case: str
    family: str
    dtype: str
    failed: tuple[str, ...]
    nearness: float


def mutants_on(
    case: Case, arithmetic: Arithmetic = CANONICAL, mutants: Sequence[Mutant] | None = None
) -> list[Outcome]:
    """Every mutant that can show on a case, under a declared arithmetic. mutants: of its op; None is all of them."""
    op = OPS[case.op]
    problem = op.problem(case)
    looked_at = op.mutants() if mutants is None else mutants
    applicable = [m for m in looked_at if case.dtype not in m.equivalent_in and m.applies(problem)]
    if not applicable:
        return []
    expected = op.expected(case, problem, arithmetic)
    with np.errstate(all="ignore"):  # to overflow, or to read a NaN, is what some of them do wrong
        answers = [(m.name, m.run(problem, arithmetic)) for m in applicable]
    return [_outcome(case, name, expected, answer) for name, answer in answers]


def right_on(case: Case, kernels: Sequence[Right] | None = None) -> list[Outcome]:
    """Every right kernel that serves a case, each under its own arithmetic. kernels: of its op; None is all."""
    op = OPS[case.op]
    problem = op.problem(case)
    expected_by = cache(lambda arithmetic: op.expected(case, problem, arithmetic))  # many declare the same
    found = []
    for kernel in op.right_kernels() if kernels is None else kernels:
        if kernel.serves(problem):
            results = kernel.run(problem)
            expected = expected_by(kernel.arithmetic)
            # A kernel that returns no lse is not asked for it.
            asked = {name: one for name, one in expected.items() if name in results or one.part is not None}
            found.append(_outcome(case, kernel.name, asked, results))
    return found


def _outcome(case: Case, kernel: str, expected: Mapping[str, Expected], results: Results) -> Outcome:
    checks = every_check(expected, results)
    failed = tuple(check.name for check in checks if not check.ok)
    return Outcome(kernel, case.id, case.family, case.dtype, failed, max(map(nearness, checks), default=0.0))


def run_mutants(
    cases: Sequence[Case], arithmetic: Arithmetic = CANONICAL, mutants: Sequence[str] | None = None, jobs: int = 2
) -> Iterator[list[Outcome]]:
    """`mutants_on` for many cases, in processes and in their order. mutants: names; None is all."""
    return _each(partial(_mutants_by_name, arithmetic=arithmetic, names=mutants), cases, jobs)


def run_right(cases: Sequence[Case], jobs: int = 2) -> Iterator[list[Outcome]]:
    """`right_on` for many cases, in processes."""
    return _each(right_on, cases, jobs)


def _mutants_by_name(case: Case, arithmetic: Arithmetic, names: Sequence[str] | None) -> list[Outcome]:
    # Mutants hold closures, which do not travel to another process; their names do.
    return mutants_on(case, arithmetic, [m for m in OPS[case.op].mutants() if names is None or m.name in names])


def _each(work: Callable[[Case], T], cases: Sequence[Case], jobs: int) -> Iterator[T]:
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        yield from pool.map(work, cases, chunksize=4)


def survivors(outcomes: Iterable[Outcome]) -> list[tuple[str, str]]:
    """(mutant, dtype) of those that passed every case on which they could show."""
    shown: dict[tuple[str, str], bool] = {}
    for outcome in outcomes:
        key = outcome.kernel, outcome.dtype
        shown[key] = shown.get(key, False) or bool(outcome.failed)
    return [key for key, killed in shown.items() if not killed]


def unshown(outcomes: Iterable[Outcome], dtypes: Sequence[str]) -> list[tuple[str, str]]:
    """(mutant, dtype) of those that no case gave a chance to show, and that are not equivalent in the dtype."""
    seen = {(outcome.kernel, outcome.dtype) for outcome in outcomes}
    wanted = [(m.name, dtype) for m in MUTANTS for dtype in dtypes if dtype not in m.equivalent_in]
    return [key for key in wanted if key not in seen]


def counted(outcomes: Iterable[Outcome]) -> list[dict[str, str | int]]:
    """For every mutant, dtype and family the cases on which it can show, and those in which each check, or ANY, killed
    it; checks that killed it in none are left out."""
    killed: dict[tuple[str, str, str], Counter[str]] = {}
    total: Counter[tuple[str, str, str]] = Counter()
    for outcome in outcomes:
        key = outcome.kernel, outcome.dtype, outcome.family
        total[key] += 1
        killed.setdefault(key, Counter({ANY: 0})).update([*outcome.failed, *([ANY] if outcome.failed else [])])
    return [
        {"mutant": key[0], "dtype": key[1], "family": key[2], "check": check, "killed": number, "total": total[key]}
        for key, checks in killed.items()
        for check, number in checks.items()
    ]
