"""What waivers make of a case's checks. The runner and whoever verifies its report decide here, and nowhere else."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import msgspec

from xattn_conformance.case import Case
from xattn_conformance.profiles.schema import Waiver
from xattn_conformance.result import Check, Status


@dataclass(frozen=True)
class Settled:
    """checks: with the limits that waivers raised. problems: what is wrong with the waivers, a sentence each."""

    checks: tuple[Check, ...]
    problems: tuple[str, ...]

    @property
    def status(self) -> Status:
        return status_of(self.checks, self.problems)


def status_of(checks: Sequence[Check], problems: Sequence[str] = ()) -> Status:
    """PASS, WAIVED or FAIL of a case that ran. Without a single check it shows nothing, and fails."""
    if problems or not checks or not all(check.ok for check in checks):
        return "FAIL"
    return "WAIVED" if any(check.waiver for check in checks) else "PASS"


def settle(
    case: Case, device: str, checks: Sequence[Check], waivers: Iterable[Waiver], today: datetime.date
) -> Settled:
    """Apply a profile's waivers to the checks of one case, given with the suite's own limits.

    device: the kind of device it ran on. A waiver that has expired, that is not needed, or whose check was not made is
    a problem: waivers are kept only where something is still wrong. It is none that a waiver is not needed on other
    inputs than the published ones, which it was filed for.
    """
    settled = list(checks)
    problems = []
    for waiver in waivers:
        if case.published.id not in waiver.cases or device != waiver.device:
            continue
        places = [place for place, check in enumerate(settled) if check.name == waiver.check]
        if waiver.expires < today:
            problems.append(f"waiver {waiver.id} expired on {waiver.expires}")
            continue
        if not places:
            problems.append(f"waiver {waiver.id} is for {waiver.check}, which was not checked")
        for place in places:
            check = settled[place]
            settled[place] = raise_limit(check, waiver)
            if check.ok and not case.draw:
                problems.append(f"waiver {waiver.id} is stale: {check.name} passes without it")
            elif not check.ok and not settled[place].ok:
                problems.append(f"waiver {waiver.id} lets {check.name} reach {waiver.limit:g}, not {_value(check)}")
    return Settled(tuple(settled), tuple(problems))


def raise_limit(check: Check, waiver: Waiver) -> Check:
    """The check under the waiver, which changes nothing where the check passes and never lowers a limit."""
    if check.ok or waiver.limit <= check.limit:
        return check
    return msgspec.structs.replace(check, limit=waiver.limit, waiver=waiver.id)


def _value(check: Check) -> str:
    return "a number that is not finite" if check.value is None else f"{check.value:g}"
