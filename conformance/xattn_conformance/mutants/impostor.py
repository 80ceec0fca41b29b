"""Backends that are wrong in how they are called, not in what they compute: a layout that is not looked at, a buffer
that is used again, a setting that is left behind. They answer through a right backend, and go through the judgement of
a whole case."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import msgspec
import torch

from xattn_conformance.case import Case
from xattn_conformance.mutants.table import Outcome
from xattn_conformance.ops.call import Execute
from xattn_conformance.profiles.schema import Profile
from xattn_conformance.result import CaseResult
from xattn_conformance.running.judge import judge
from xattn_conformance.running.target import Target

# Answers for all of them.
BACKEND = "reference"
# The profile of a backend that declares nothing.
UNDECLARED = Profile(schema=1, backend=BACKEND, hardware=())


@dataclass(frozen=True)
class Where:
    """variations: those that show the mistake, one of which a case must have; empty where the first call shows it.
    also: what else must be true of the case."""

    variations: tuple[str, ...] = ()
    also: Callable[[Case], bool] = lambda case: True

    def __call__(self, case: Case) -> bool:
        if self.variations and not set(self.variations) & set(case.variations):
            return False
        return min(case.shape.values()) > 0 and self.also(case)


@dataclass(frozen=True)
class Impostor:
    """name: unique among all mutants. wrong: what is wrong, in a line.

    open:    a fresh one: what executes its calls, until the context ends, which puts back what it left behind.
    applies: whether the mistake can show in a case.
    """

    name: str
    wrong: str
    open: Callable[[], AbstractContextManager[Execute]]
    applies: Where


def tried(impostor: Impostor, case: Case, profile: Profile, kind: str) -> CaseResult:
    """What a run under the profile, on a kind of device, says to the impostor in a case, of whose variations those are
    made that show the mistake."""
    shown = tuple(name for name in case.variations if name in impostor.applies.variations)
    case = msgspec.structs.replace(case, variations=shown)
    profile = msgspec.structs.replace(profile, executor="")  # it has none of the profile's
    threads = torch.get_num_threads()
    with impostor.open() as execute:
        result = judge(case, Target(BACKEND, "cpu", kind, profile, execute, "stand-in"))
    torch.set_num_threads(threads)
    return result


def outcome(impostor: Impostor, case: Case, profile: Profile, kind: str = "cpu") -> Outcome:
    result = tried(impostor, case, profile, kind)
    failed = tuple(check.name for check in result.checks if not check.ok)
    if not failed and result.status not in ("PASS", "WAIVED"):
        failed = (result.status.lower(),)
    return Outcome(impostor.name, case.id, case.family, case.dtype, failed, float("inf") if failed else 0.0)
