"""What becomes of the blind mutants: `python -m xattn_conformance.ops.attention.mutants.blind.verdicts` prints the rows
of docs/blind-mutants.md."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

from xattn_conformance.case import DTYPES, Case, scores
from xattn_conformance.mutants.impostor import BACKEND, UNDECLARED, Impostor
from xattn_conformance.mutants.mutant import Mutant
from xattn_conformance.mutants.table import mutants_on
from xattn_conformance.mutants.witnesses import SCORES_MAX
from xattn_conformance.ops.attention.cases import load
from xattn_conformance.ops.attention.mutants.blind import BLIND
from xattn_conformance.running.judge import judge
from xattn_conformance.running.target import Target

# Looked at in this order: those that the first lets live go through the second.
LEVELS = ("core", "extended")


Wrong = Mutant | Impostor


def killed(kernels: Sequence[Wrong], case: Case) -> list[str]:
    """Whom of them a case catches, with all the variations that it has."""
    mutants = [kernel for kernel in kernels if isinstance(kernel, Mutant)]
    found = [outcome.kernel for outcome in mutants_on(case, mutants=mutants) if outcome.failed]
    for kernel in kernels:
        if isinstance(kernel, Impostor) and kernel.applies(case):
            with kernel.open() as execute:
                result = judge(case, Target(BACKEND, "cpu", "cpu", UNDECLARED, execute, "stand-in"))
            found += [kernel.name] if result.status in ("FAIL", "ERROR") else []
    return found


def first_deaths(dtype: str) -> dict[str, Case]:
    """By the name of a kernel the case that caught it first, from cheap ones to dear ones of each level."""
    small = [case for case in load() if case.dtype == dtype and case.level in LEVELS and scores(case) <= SCORES_MAX]
    found: dict[str, Case] = {}
    for case in sorted(small, key=lambda case: (LEVELS.index(case.level), scores(case))):
        alive = [kernel for kernel in BLIND if kernel.name not in found]
        for name in killed(alive, case):
            found[name] = case
            print(f"{name}: {case.level}, {case.id}", file=sys.stderr, flush=True)
    return found


def row(kernel: Wrong, deaths: Mapping[str, Mapping[str, Case]]) -> str:
    """deaths: by dtype."""
    right = kernel.equivalent_in if isinstance(kernel, Mutant) else {}
    by = {dtype: deaths[dtype].get(kernel.name) for dtype in DTYPES if dtype not in right}
    levels = {dtype: case.level if case else "**survived**" for dtype, case in by.items()}
    # One case, where it is the same in every dtype.
    found = {dtype: case.id for dtype, case in by.items() if case}
    anywhere = {case.replace(f"/{dtype}/", "/*/") for dtype, case in found.items()}
    named = anywhere if len(anywhere) == 1 and len(found) == len(by) else set(found.values())
    cells = [*(levels.get(dtype, "right") for dtype in DTYPES), ", ".join(f"`{case}`" for case in sorted(named))]
    return f"| `{kernel.name}` | {kernel.wrong} | {' | '.join(cells)} |"


def main() -> None:
    deaths = {dtype: first_deaths(dtype) for dtype in DTYPES}
    for kernel in BLIND:
        print(row(kernel, deaths))


if __name__ == "__main__":
    main()
