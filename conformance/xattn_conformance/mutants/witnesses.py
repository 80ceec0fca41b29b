"""For every mutant the cheap cases that kill it: what admission and canaries run.

`python -m xattn_conformance.mutants.witnesses [OP ...]` finds them again, after cases, limits or mutants have changed.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from multiprocessing import get_context
from typing import Any

import msgspec

from xattn_conformance.case import DTYPES, Case, scores
from xattn_conformance.levels import LEVELS
from xattn_conformance.mutants.impostor import UNDECLARED, Impostor, outcome
from xattn_conformance.mutants.mutant import Mutant
from xattn_conformance.mutants.table import Outcome, mutants_on
from xattn_conformance.ops.base import Op
from xattn_conformance.ops.registry import OPS

# In the room of an op that has mutants.
FILE = "witnesses.json"

# Witnesses of a mutant: a second and a third one, lest a profile's arithmetic hides it from the first.
COUNT = 3
# How far over a limit a mutant must be, that another machine's last bits do not save it. One that no case shows so
# clearly is content with less.
MARGIN = 2.0
# No more clear witnesses than these are looked at to find some of different families.
ENOUGH = 6
# batch * nheads * seqlen_q * seqlen_k of the largest case that is looked at.
SCORES_MAX = 2**20
# Of so many cases a sample takes one.
SAMPLE = 12
# Cases between two looks at which mutants still need some: a matter of speed, but the result must not depend on it
# being the number of processes.
_WAVE = 16


@cache
def witnesses() -> Mapping[str, tuple[str, ...]]:
    """Mutant -> ids of cases that kill it under the canonical arithmetic, in every dtype in which it is not equivalent,
    with "*" for the dtype; the cheapest first."""
    found: dict[str, tuple[str, ...]] = {}
    for op in OPS.values():
        if op.mutants():
            found |= msgspec.json.decode((op.room / FILE).read_bytes(), type=dict[str, tuple[str, ...]])
    return found


def witnesses_in(mutant: str, dtype: str) -> tuple[str, ...]:
    """The ids of a mutant's witnesses in a dtype."""
    return tuple(case.replace("/*/", f"/{dtype}/") for case in witnesses()[mutant])


def sample(cases: Sequence[Case]) -> list[Case]:
    """The witnesses among some cases, and one in SAMPLE of the others: the same in every dtype."""
    wanted = {case for some in witnesses().values() for case in some}
    return [case for case in cases if _any_dtype(case) in wanted or case.seed % SAMPLE == 0]


@dataclass(frozen=True)
class Kill:
    """A case, "*" for its dtype, that kills a mutant in every dtype. nearness: in the dtype in which it is smallest."""

    case: str
    family: str
    nearness: float


def choose(kills: Sequence[Kill]) -> tuple[str, ...]:
    """The witnesses out of a mutant's kills, which come from cheap to dear: of different families, and clear ones."""
    best = sorted(kills, key=lambda kill: -min(kill.nearness, MARGIN))
    first = [kill for n, kill in enumerate(best) if kill.family not in {other.family for other in best[:n]}]
    return tuple(kill.case for kill in [*first, *(kill for kill in best if kill not in first)][:COUNT])


def enough(kills: Sequence[Kill]) -> bool:
    clear = [kill for kill in kills if kill.nearness >= MARGIN]
    return len(clear) >= ENOUGH or len({kill.family for kill in clear}) >= COUNT


def kills_on(cases: Sequence[Case], mutants: Sequence[str]) -> dict[str, Kill]:
    """What one case, given in every dtype, kills of some mutants of its op."""
    left = {mutant.name: mutant for mutant in OPS[cases[0].op].mutants() if mutant.name in mutants}
    nearness: dict[str, list[float]] = {name: [] for name in left}
    for case in cases:
        shown = {outcome.kernel: outcome for outcome in mutants_on(case, mutants=list(left.values()))}
        for name, mutant in list(left.items()):
            if case.dtype in mutant.equivalent_in:
                continue
            if name in shown and shown[name].failed:
                nearness[name].append(shown[name].nearness)
            else:  # not worth a look in the other dtypes
                del left[name]
    return {name: Kill(_any_dtype(cases[0]), cases[0].family, min(nearness[name])) for name in left}


def search(cases: Sequence[Case], mutants: Sequence[Mutant], jobs: int = 2) -> Iterator[dict[str, list[Kill]]]:
    """The kills of every mutant so far, after every few cases of its op, until each has enough or there are no more."""
    rows: dict[str, list[Case]] = {}
    for case in sorted(cases, key=lambda case: (scores(case), _any_dtype(case), -DTYPES.index(case.dtype))):
        rows.setdefault(_any_dtype(case), []).append(case)
    todo, kills = list(rows.values()), {mutant.name: list[Kill]() for mutant in mutants}
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        for start in range(0, len(todo), _WAVE):
            wanted = [name for name, some in kills.items() if not enough(some)]
            for found in pool.map(partial(kills_on, mutants=wanted), todo[start : start + _WAVE]):
                for name, kill in found.items():
                    kills[name].append(kill)
            yield kills


def _any_dtype(case: Case) -> str:
    return case.id.replace(f"/{case.dtype}/", "/*/")


def write(op: Op[Any]) -> list[str]:
    """Find the witnesses of an op's mutants, and write them into its room. Returns the mutants that have none."""
    kills: dict[str, list[Kill]] = {}
    small = [case for case in op.cases() if scores(case) <= SCORES_MAX]
    for number, kills in enumerate(search(small, op.mutants())):
        waiting = sum(not enough(some) for some in kills.values())
        print(f"{op.name}, {(number + 1) * _WAVE} cases: {waiting} of {len(kills)} mutants need more", file=sys.stderr)
    found = {name: choose(some) for name, some in kills.items()}
    found |= {impostor.name: shown(impostor, small) for impostor in op.impostors()}
    (op.room / FILE).write_bytes(msgspec.json.format(msgspec.json.encode(found), indent=1) + b"\n")
    return [name for name, cases in found.items() if not cases]


def shown(impostor: Impostor, cases: Sequence[Case]) -> tuple[str, ...]:
    """The cheapest case that shows an impostor in every dtype, of the lowest level that has one."""
    rows: dict[str, list[Case]] = {}
    for case in sorted(filter(impostor.applies, cases), key=lambda case: (LEVELS.index(case.level), scores(case))):
        rows.setdefault(_any_dtype(case), []).append(case)
    for name, row in rows.items():
        if all(outcome(impostor, case, UNDECLARED).failed for case in row):
            return (name,)
    return ()


def run_impostors(cases: Sequence[Case]) -> Iterator[list[Outcome]]:
    """Of each case the impostors whose witness it is. In this process: what they leave behind, they put back."""
    for case in cases:
        witnessed = [one for one in OPS[case.op].impostors() if case.id in witnesses_in(one.name, case.dtype)]
        yield [outcome(impostor, case, UNDECLARED) for impostor in witnessed]


def main() -> int:
    """Of the ops that are named, or of all."""
    alive = [name for op in OPS.values() if op.mutants() and op.name in (sys.argv[1:] or OPS) for name in write(op)]
    for name in alive:
        print(f"{name}: no case kills it in every dtype", file=sys.stderr)
    return 1 if alive else 0


if __name__ == "__main__":
    raise SystemExit(main())
