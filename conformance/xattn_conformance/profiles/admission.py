"""No profile is loaded under which a wrong kernel passes: not by what it declares, and not by its waivers.

Every mutant is run under the profile's own arithmetic, on the cases that show it best, and compared as a backend is.
The golden results and problems are shared by all of them, and what is found out holds for the process.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence

import msgspec
import numpy as np

from xattn_conformance.mutants.witnesses import witnesses_in
from xattn_conformance.mutants.zoo import OWN
from xattn_conformance.ops.registry import OPS
from xattn_conformance.profiles import known
from xattn_conformance.profiles.schema import Profile, Waiver
from xattn_conformance.profiles.waivers import raise_limit
from xattn_conformance.result import Check
from xattn_conformance.tolerance.arithmetic import CANONICAL, Arithmetic
from xattn_conformance.tolerance.compare import failures

_MUTANTS = {mutant.name: mutant for mutant in OWN}

Waivers = tuple[Waiver, ...]


def admit(
    profile: Profile, devices: Iterable[str], dtypes: Sequence[str], ops: Iterable[str] | None = None
) -> list[str]:
    """Why a profile is refused: the first mutant that would live on each device, in each dtype, and what it would live
    by. Empty: admitted. ops: those that the backend has, whose mutants it is tried on; None is all."""
    tried = frozenset(OPS if ops is None else ops)
    found: dict[tuple[Arithmetic, Waivers, str], str | None] = {}
    for device in sorted(devices):
        for dtype in dtypes:
            own = [waiver for waiver in profile.waiver if waiver.device == device]
            judged = profile.arithmetic_for(device, dtype), tuple(own), dtype
            if judged not in found and (name := survivor(*judged, tried)):
                wrong = f'a kernel that is wrong, "{name}" ({_MUTANTS[name].wrong}), would pass'
                found[judged] = f"on {device} in {dtype} {wrong} by {_blamed(name, *judged)}"
            found.setdefault(judged, None)
    return [line for line in found.values() if line]


@functools.cache
def survivor(arithmetic: Arithmetic, waivers: Waivers, dtype: str, ops: frozenset[str]) -> str | None:
    """The name of a mutant of one of the ops that no case shows to be wrong."""
    for name, mutant in _MUTANTS.items():
        if dtype in mutant.equivalent_in or _op(witnesses_in(name, dtype)[0]) not in ops:
            continue
        if not _caught(name, arithmetic, waivers, dtype):
            return name
    return None


def _caught(name: str, arithmetic: Arithmetic, waivers: Waivers, dtype: str) -> bool:
    return any(
        not _waived(check, case, waivers).ok
        for case in _witnesses(name, dtype)
        for check in _failures(name, case, arithmetic)
    )


def _witnesses(name: str, dtype: str) -> Iterator[str]:
    """The cases that a mutant is tried on: its own witnesses, and where it hides from these, those of all others of its
    op."""
    own = witnesses_in(name, dtype)
    yield from own
    yield from (case for case in _panel(dtype) if case not in own and _op(case) == _op(own[0]))


def _op(case: str) -> str:
    """The op that the id of a case begins with."""
    return case.partition("/")[0]


@functools.cache
def _panel(dtype: str) -> tuple[str, ...]:
    mutants = [mutant for mutant in OWN if dtype not in mutant.equivalent_in]
    return tuple(dict.fromkeys(case for mutant in mutants for case in witnesses_in(mutant.name, dtype)))


def _waived(check: Check, case: str, waivers: Waivers) -> Check:
    for waiver in waivers:
        if case in waiver.cases and check.name == waiver.check:
            return raise_limit(check, waiver)
    return check


@functools.cache
def _failures(name: str, case: str, arithmetic: Arithmetic) -> tuple[Check, ...]:
    """The checks that the mutant fails in a case, by the suite's own limits; none where it is no mistake."""
    mutant, problem = _MUTANTS[name], known.problem(case)
    if not mutant.applies(problem):
        return ()
    expected = known.golden(case, arithmetic)
    with np.errstate(all="ignore"):  # a wrong kernel may well overflow
        results = mutant.run(problem, arithmetic)
    return failures(expected, results)


def _blamed(name: str, arithmetic: Arithmetic, waivers: Waivers, dtype: str) -> str:
    """What a survivor lives by: waivers, a declaration, or all that differs from the canonical arithmetic together."""
    if _caught(name, arithmetic, (), dtype):
        shown = {case for case in _witnesses(name, dtype) if _failures(name, case, arithmetic)}
        return "the waivers " + ", ".join(waiver.id for waiver in waivers if shown & set(waiver.cases))
    fields = [
        field for field in Arithmetic.__struct_fields__ if getattr(arithmetic, field) != getattr(CANONICAL, field)
    ]
    for field in fields:
        if _caught(name, _without(arithmetic, field), waivers, dtype):
            return _said(arithmetic, [field])
    if not _caught(name, CANONICAL, (), dtype):
        return "no declaration: the suite has no case that shows it under the canonical arithmetic either"
    return _said(arithmetic, fields)


def _without(arithmetic: Arithmetic, field: str) -> Arithmetic:
    return msgspec.structs.replace(arithmetic, **{field: getattr(CANONICAL, field)})


def _said(arithmetic: Arithmetic, fields: Sequence[str]) -> str:
    return ", ".join(f"{field} = {msgspec.json.encode(getattr(arithmetic, field)).decode()}" for field in fields)


def believes(profile: Profile, device: str, dtypes: Sequence[str], ops: Iterable[str]) -> list[str]:
    """Why a profile is refused: the first impostor of each op that would pass under it on a device. In one dtype: what
    is wrong in a call is wrong in all of them."""
    # They go through the judgement of a run, which reads profiles.
    from xattn_conformance.mutants.impostor import tried

    found = []
    for op in ops:
        for impostor in OPS[op].impostors():
            (case,) = witnesses_in(impostor.name, dtypes[0])
            if tried(impostor, known.cases()[case], profile, device).status in ("PASS", "WAIVED"):
                wrong = f'a backend that is wrong, "{impostor.name}" ({impostor.wrong}), would pass {case}'
                found.append(f"on {device} in {dtypes[0]} {wrong}")
                break
    return found
