"""What a report is held to."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from xattn_conformance.case import SUITES, Case
from xattn_conformance.golden.inputs import digest_of
from xattn_conformance.golden.manifest import manifest_digest
from xattn_conformance.levels import Level
from xattn_conformance.mutants.zoo import OWN
from xattn_conformance.ops.registry import OPS
from xattn_conformance.profiles import load
from xattn_conformance.profiles.admission import admit
from xattn_conformance.profiles.schema import Profile
from xattn_conformance.running.selection import fresh, select
from xattn_conformance.tolerance.arithmetic import Arithmetic
from xattn_conformance.tolerance.compare import samples
from xattn_conformance.tolerance.limits import limit


@dataclass(frozen=True)
class Suite:
    """versions: those whose reports it can work out, the newest last. goldens: sha256 of the manifest.

    select:   the cases of a level, in some dtypes, of a pattern. fresh: those that a run takes once more, out of those
              that passed, on inputs of a seed.
    limit:    the most that a metric may be, over a count of samples.
    inputs:   sha256 of the bits of a case's inputs; None where it is unknown.
    refusals: why a profile is not admitted, for a kind of device, some dtypes and ops, and the day of the run.
    judged:   whether the golden of a case has an element with a tolerance in a tensor.
    counts:   how many independent samples the heads of a tensor of a case are.
    mutants:  names of the wrong kernels. knobs: ids of the cases that ask whether an option does anything.
    """

    versions: tuple[str, ...]
    goldens: str
    select: Callable[[Level, Collection[str], str], Sequence[Case]]
    fresh: Callable[[Iterable[Case], int], list[Case]]
    limit: Callable[[str, float], float]
    inputs: Callable[[Case], str | None]
    refusals: Callable[[Profile, str, Sequence[str], Sequence[str], datetime.date], list[str]]
    judged: Callable[[Case, Arithmetic, str], bool]
    counts: Callable[[Case, Arithmetic, str], Collection[float]]
    mutants: frozenset[str]
    knobs: frozenset[str]


def installed() -> Suite:
    return Suite(
        versions=SUITES,
        goldens=manifest_digest(),
        select=select,
        fresh=fresh,
        limit=limit,
        inputs=_inputs,
        refusals=_refusals,
        judged=_judged,
        counts=_counts,
        mutants=frozenset(mutant.name for mutant in OWN),
        knobs=frozenset(case.id for op in OPS.values() for case in op.knob_cases()),
    )


def _inputs(case: Case) -> str | None:
    """The published inputs are stored; others are made."""
    op = OPS[case.op]
    return op.digest(op.problem(case)) if case.draw else digest_of(case)


def _refusals(
    profile: Profile, kind: str, dtypes: Sequence[str], ops: Sequence[str], today: datetime.date
) -> list[str]:
    # Which devices the backend serves is not known here: it need not be installed.
    found = load.problems(profile, profile.backend, frozenset({"any"}), today)
    return found or admit(profile, [kind], dtypes, ops)


def _judged(case: Case, arithmetic: Arithmetic, tensor: str) -> bool:
    return bool(_counts(case, arithmetic, tensor))


def _counts(case: Case, arithmetic: Arithmetic, tensor: str) -> Collection[float]:
    op = OPS[case.op]
    problem = op.problem(case)
    if case.published.id in {knob.id for knob in op.knob_cases()}:
        expected = op.switch(case.published, problem, arithmetic, "cpu").expected_on.get(tensor)
    else:
        expected = op.expected(case, problem, arithmetic).get(tensor)
    if expected is None:
        return ()
    judged = np.isfinite(expected.value) & (expected.sigma > 0)
    return {round(float(count), 2) for count in samples(expected, judged).flat} if judged.any() else ()
