"""Whether a report follows from what it says itself: every status is worked out again from the checks, the limits of
the installed suite and the waivers in the report's profile. Numbers that were measured are taken as they stand."""

from __future__ import annotations

import datetime
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

import msgspec

from xattn_conformance.case import Case, Level
from xattn_conformance.golden.verify import manifest_digest
from xattn_conformance.profiles.schema import Profile, ProfileError, parse
from xattn_conformance.profiles.waivers import settle
from xattn_conformance.reports.claims import STRENGTH
from xattn_conformance.result import SCHEMA, SUITE, CaseResult, Check, Report
from xattn_conformance.running.selection import select
from xattn_conformance.tolerance.limits import limit

# How many cases a problem names before it counts the rest.
_NAMED = 3


@dataclass(frozen=True)
class Suite:
    """What a report is held to.

    goldens: sha256 of the manifest. select: the cases of a level, in some dtypes, of a pattern. limit: the most that a
    metric may be, over a count of samples.
    """

    version: str
    goldens: str
    select: Callable[[Level, Collection[str], str], Sequence[Case]]
    limit: Callable[[str, float], float]


def installed() -> Suite:
    return Suite(SUITE, manifest_digest(), select, limit)


def verify(report: Report, suite: Suite | None = None) -> list[str]:
    """What is wrong with the report, a sentence each; empty where every status follows. A report may verify and be of
    a backend that fails."""
    suite = suite or installed()
    if report.schema != SCHEMA:
        return [f"a report of schema {report.schema}; this suite reads schema {SCHEMA}"]
    if report.suite != suite.version:
        return [f"a report of suite {report.suite}; only that suite can work it out again, this is {suite.version}"]
    if report.invalid:
        return [f"the run is invalid, nothing in it counts: {report.invalid}"]
    return [*_run(report, suite), *_selected(report, suite), *_cases(report, suite)]


def _run(report: Report, suite: Suite) -> Iterator[str]:
    if report.goldens != suite.goldens:
        yield f"its goldens are {report.goldens or 'not named'}, those installed are {suite.goldens}"
    if not report.executed:
        yield "nothing was executed"
    if len(report.canaries) < 2:
        yield f"a run sends a null kernel and a wrong one through its comparison; this one sent {len(report.canaries)}"
    for canary in report.canaries:
        if not canary.caught_by or (canary.value is not None and canary.value <= canary.limit):
            yield f"the wrong kernel {canary.name!r} was not caught, and the run is not invalid"
    stronger = [r for r in report.cases if STRENGTH.index(r.provenance) < STRENGTH.index(report.provenance)]
    if stronger:
        yield f"{stronger[0].id} was obtained on {stronger[0].provenance}, the run on {report.provenance}"


def _selected(report: Report, suite: Suite) -> Iterator[str]:
    """The cases must be those of the level, dtypes and pattern, each once and as the suite has it."""
    wanted = {case.id: case for case in suite.select(report.level, report.dtypes, report.selection)}
    found = Counter(result.id for result in report.cases)
    for what, ids in (
        ("of the run are missing", [id_ for id_ in wanted if id_ not in found]),
        (f"are not of the run: suite {suite.version} has no such case there", [i for i in found if i not in wanted]),
        ("stand more than once", [id_ for id_, count in found.items() if count > 1]),
    ):
        if ids:
            more = f" and {len(ids) - _NAMED} more" if len(ids) > _NAMED else ""
            yield f"{len(ids)} cases {what}: {', '.join(ids[:_NAMED])}{more}"
    for result in report.cases:
        if result.id != result.case.id:
            yield f"{result.id}: the case in it is {result.case.id}"
        # As JSON: a report that was read has lists where the table may have tuples.
        elif result.id in wanted and _text(result.case) != _text(wanted[result.id]):
            yield f"{result.id}: the case in it is not the suite's"


def _text(case: Case) -> bytes:
    return msgspec.json.encode(case, order="deterministic")


def _cases(report: Report, suite: Suite) -> Iterator[str]:
    try:
        profile = parse(report.profile)
        today = datetime.datetime.fromisoformat(report.started).date()
        kind = report.environment["device"]["kind"]
    except ProfileError as error:
        yield f"its profile is refused: {error}"
        return
    except (ValueError, KeyError, TypeError) as error:
        yield f"it does not say when and on which kind of device it ran: {error}"
        return
    if profile.backend != report.backend:
        yield f"its profile is that of {profile.backend}"
    if report.provenance == "hardware" and kind not in profile.hardware:
        yield f"it says that it ran on the vendor's hardware, but its profile does not name {kind!r}"
    for result in report.cases:
        for problem in _case(result, profile, kind, today, suite):
            yield f"{result.id}: {problem}"


def _case(result: CaseResult, profile: Profile, kind: str, today: datetime.date, suite: Suite) -> Iterator[str]:
    if not result.checks:
        yield from _unchecked(result)
        return
    own = [_unwaived(check, suite) for check in result.checks]
    settled = settle(result.id, kind, own, profile.waiver, today)
    for said, check in zip(result.checks, settled.checks, strict=True):
        if (said.limit, said.waiver) != (check.limit, check.waiver):
            yield f"{said.name} was held to {_held(said)}, it is held to {_held(check)}"
    if result.status != settled.status:
        because = settled.problems or [f"{c.name} is {c.value}, limit {c.limit:g}" for c in settled.checks if not c.ok]
        yield f"{result.status}, but its checks say {settled.status}" + (f": {'; '.join(because)}" if because else "")
    if result.status in ("PASS", "WAIVED"):
        yield from _incomplete(result)


def _unwaived(check: Check, suite: Suite) -> Check:
    metric = check.name.rpartition(".")[2]
    return msgspec.structs.replace(check, limit=suite.limit(metric, check.count), waiver="")


def _held(check: Check) -> str:
    return f"{check.limit:g}" + (f" by the waiver {check.waiver}" if check.waiver else "")


def _unchecked(result: CaseResult) -> Iterator[str]:
    """A case without a check has failed in another way, or was declined."""
    if result.status in ("PASS", "WAIVED"):
        yield f"{result.status} without a single check"
    elif result.status == "UNSUPPORTED":
        if not result.reasons:
            yield "UNSUPPORTED without a reason"
    elif not result.message:
        yield f"{result.status} without a word why"


def _incomplete(result: CaseResult) -> Iterator[str]:
    """What was asked for must have been looked at: every result, and every variation that was not declined."""
    names = {check.name for check in result.checks}
    if "knob.ignored" in names:  # such a case asks nothing else
        return
    results = {name.removesuffix(".missing") for name in names if name.endswith(".missing")}
    if not results:
        yield "no result was looked at"
    for name in sorted(results):
        if not {f"{name}.shape", f"{name}.finite", f"{name}.exact"} <= names:
            yield f"{name} was not compared"
    for variation in result.case.variations:
        looked = any(name.startswith((f"{variation}.", f"{variation}:")) for name in names)
        if not looked and f"the variation {variation} is left out" not in result.message:
            yield f"the variation {variation} was not looked at"
