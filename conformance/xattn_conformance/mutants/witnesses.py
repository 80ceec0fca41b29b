"""For every mutant the cheap cases that kill it: what admission and canaries run.

`python -m xattn_conformance.mutants.witnesses` finds them again, after cases, limits or mutants have changed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib.resources import files
from math import prod

import msgspec

from xattn_conformance.case import DTYPES, Case
from xattn_conformance.mutants.table import OP, Outcome, run_mutants
from xattn_conformance.mutants.zoo import MUTANTS

FILE = files("xattn_conformance.mutants") / "witnesses.json"

# Witnesses of a mutant: a second and a third one, lest a profile's arithmetic hides it from the first.
COUNT = 3
# batch * nheads * seqlen_q * seqlen_k of the largest case that is looked at.
SCORES_MAX = 2**17


@cache
def witnesses() -> Mapping[str, tuple[str, ...]]:
    """Mutant -> ids of cases that kill it under the canonical arithmetic, in every dtype in which it is not equivalent,
    with "*" for the dtype; the best first."""
    return msgspec.json.decode(FILE.read_bytes(), type=dict[str, tuple[str, ...]])


def witnesses_in(mutant: str, dtype: str) -> tuple[str, ...]:
    """The ids of a mutant's witnesses in a dtype."""
    return tuple(case.replace("/*/", f"/{dtype}/") for case in witnesses()[mutant])


def scores(case: Case) -> int:
    return prod(case.shape[size] for size in ("batch", "nheads", "seqlen_q", "seqlen_k"))


def choose(outcomes: Iterable[Outcome], cases: Sequence[Case]) -> dict[str, tuple[str, ...]]:
    """The witnesses of every mutant: those that fail it by the most checks, then the cheapest."""
    sizes = {_any_dtype(case.id, case.dtype): scores(case) for case in cases}
    failed: dict[tuple[str, str], dict[str, int]] = defaultdict(dict)
    for outcome in outcomes:
        if outcome.failed:
            failed[outcome.kernel, _any_dtype(outcome.case, outcome.dtype)][outcome.dtype] = len(outcome.failed)
    found = {}
    for mutant in MUTANTS:
        wanted = set(DTYPES) - set(mutant.equivalent_in)
        kills = {case: by for (name, case), by in failed.items() if name == mutant.name and by.keys() >= wanted}
        best = sorted(kills, key=lambda case: (-min(kills[case].values()), sizes[case], case))
        found[mutant.name] = tuple(best[:COUNT])
    return found


def _any_dtype(case: str, dtype: str) -> str:
    return case.replace(f"/{dtype}/", "/*/")


def main() -> None:
    cases = [case for case in OP.cases() if scores(case) <= SCORES_MAX]
    outcomes = [outcome for some in run_mutants(cases) for outcome in some]
    found = choose(outcomes, cases)
    with open(str(FILE), "wb") as file:
        file.write(msgspec.json.format(msgspec.json.encode(found), indent=1) + b"\n")
    for name in [name for name, cases_of in found.items() if not cases_of]:
        print(f"{name}: no case kills it in every dtype")


if __name__ == "__main__":
    main()
