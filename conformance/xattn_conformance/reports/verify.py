"""Whether a report follows from what it says itself: every status is worked out again from the checks, the limits of
the installed suite and the waivers in the report's profile, which must be one that the suite admits. Numbers that were
measured are taken as they stand."""

from __future__ import annotations

import datetime
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

import msgspec

from xattn_conformance.case import DTYPES, Case
from xattn_conformance.ops.registry import OPS
from xattn_conformance.profiles.schema import Profile, ProfileError, parse
from xattn_conformance.profiles.waivers import settle
from xattn_conformance.reports.circumstances import contradictions
from xattn_conformance.reports.claims import STRENGTH
from xattn_conformance.reports.measured import impossible
from xattn_conformance.reports.reasons import left_out, unfounded
from xattn_conformance.reports.suite import Suite, installed
from xattn_conformance.reports.wanted import incomplete
from xattn_conformance.result import SCHEMA, CaseResult, Check, Report
from xattn_conformance.running.canaries import NULL
from xattn_conformance.running.reach import untested

# How many cases a problem names before it counts the rest.
_NAMED = 3


def verify(report: Report, suite: Suite | None = None, now: datetime.datetime | None = None) -> list[str]:
    """What is wrong with the report, a sentence each; empty where every status follows. A report may verify and be of
    a backend that fails. now: by the clock of whoever verifies."""
    suite, now = suite or installed(), now or datetime.datetime.now(datetime.timezone.utc)
    if report.schema != SCHEMA:
        return [f"a report of schema {report.schema}; this suite reads schema {SCHEMA}"]
    if report.suite not in suite.versions:
        said = f"this is {suite.versions[-1]}, which knows {', '.join(suite.versions)}"
        return [f"a report of suite {report.suite}; only that suite or a later one can work it out again, {said}"]
    if report.invalid:
        return [f"the run is invalid, nothing in it counts: {report.invalid}"]
    if sorted(set(report.dtypes) & set(DTYPES)) != sorted(report.dtypes):
        return [f"its dtypes are {', '.join(report.dtypes)}; each is one of {', '.join(DTYPES)}, and stands there once"]
    if unknown := sorted(set(report.ops) - set(OPS)):
        return [f"its ops are {', '.join(report.ops)}; the suite knows no {', '.join(unknown)}"]
    if len(set(report.ops)) < len(report.ops) or not report.ops:
        return [f"its ops are {report.ops}; a run is of one or more, each once"]
    every = suite.select(report.level, report.dtypes, report.selection)
    then = suite.versions[: suite.versions.index(report.suite) + 1]
    own = [case for case in every if case.op in report.ops and case.since in then]
    own = [msgspec.structs.replace(case, draw=report.seed) for case in own]
    wanted = {case.id: case for case in (*own, *_fresh(report, own, suite))}
    selected = _selected(report, wanted, suite)
    return [*_run(report, suite), *_canaries(report, suite), *selected, *_cases(report, wanted, suite, now)]


def _fresh(report: Report, own: Iterable[Case], suite: Suite) -> list[Case]:
    """The cases that a run takes once more, on inputs of its own seed: they follow from what passed."""
    known = {case.id: case for case in own}
    passed = [known[r.id] for r in report.cases if r.status == "PASS" and r.id in known]
    return suite.fresh(passed, report.fresh) if report.fresh and not report.seed else []


def _run(report: Report, suite: Suite) -> Iterator[str]:
    if report.goldens != suite.goldens:
        yield f"its goldens are {report.goldens or 'not named'}, those installed are {suite.goldens}"
    if not report.executed:
        yield "nothing was executed"
    if (left := untested(report.declared, report.cases)) != report.untested:
        yield f"it says that it left {report.untested or 'nothing'} untested, and that is {left or 'nothing'}"
    stronger = [r for r in report.cases if STRENGTH.index(r.provenance) < STRENGTH.index(report.provenance)]
    if stronger:
        yield f"{stronger[0].id} was obtained on {stronger[0].provenance}, the run on {report.provenance}"


def _canaries(report: Report, suite: Suite) -> Iterator[str]:
    """A run sends the null kernel and another wrong one through its comparison, and catches both."""
    names = [canary.name for canary in report.canaries]
    if len(names) < 2 or len(set(names)) < len(names) or NULL not in names:
        yield f"a run sends {NULL!r} and another wrong kernel through its comparison; this one sent {names}"
    for canary in report.canaries:
        if canary.name not in suite.mutants:
            yield f"the suite knows no wrong kernel {canary.name!r}"
        if not canary.caught_by or (canary.value is not None and canary.value <= canary.limit):
            yield f"the wrong kernel {canary.name!r} was not caught, and the run is not invalid"


def _selected(report: Report, wanted: Mapping[str, Case], suite: Suite) -> Iterator[str]:
    """The cases must be those of the level, dtypes and pattern, each once and as the suite has it."""
    found = Counter(result.id for result in report.cases)
    for what, ids in (
        ("of the run are missing", [id_ for id_ in wanted if id_ not in found]),
        (f"are not of the run: suite {report.suite} has no such case there", [i for i in found if i not in wanted]),
        ("stand more than once", [id_ for id_, count in found.items() if count > 1]),
    ):
        if ids:
            more = f" and {len(ids) - _NAMED} more" if len(ids) > _NAMED else ""
            yield f"{len(ids)} cases {what}: {', '.join(ids[:_NAMED])}{more}"
    for result in report.cases:
        if result.id in wanted and not _same(result.case, wanted[result.id]):
            yield f"{result.id}: the case in it is not the suite's"


def _same(a: Case, b: Case) -> bool:
    """As JSON: a report that was read has lists where the table may have tuples."""
    texts = [msgspec.json.encode(case, order="deterministic") for case in (a, b)]
    return texts[0] == texts[1]


def _cases(report: Report, wanted: Mapping[str, Case], suite: Suite, now: datetime.datetime) -> Iterator[str]:
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
    for refusal in suite.refusals(profile, kind, report.dtypes, report.ops, today):
        yield f"its profile is refused: {refusal}"
    if report.provenance == "hardware" and kind not in profile.hardware:
        yield f"it says that it ran on the vendor's hardware, but its profile does not name {kind!r}"
    yield from contradictions(report, profile, now)
    for result in report.cases:
        # What is no case of the suite's is said above, and nothing follows from it.
        if result.id not in wanted or not _same(result.case, wanted[result.id]):
            continue
        for problem in _case(result, profile, kind, today, report.soak > 0, suite):
            yield f"{result.id}: {problem}"
        for problem in left_out(result, report.device, profile.executor):
            yield f"{result.id}: {problem}"


def _case(
    result: CaseResult, profile: Profile, kind: str, today: datetime.date, soaked: bool, suite: Suite
) -> Iterator[str]:
    wanted = suite.inputs(result.case)
    # An ERROR may come before the inputs are made, and INVALID says that they are others.
    if wanted is not None and result.inputs != wanted and result.status not in ("ERROR", "INVALID"):
        yield f"its inputs are {result.inputs or 'not named'}, the suite's are {wanted}"
    if not result.checks:
        yield from _unchecked(result)
        return
    arithmetic = profile.arithmetic_for(kind, result.case.dtype)
    yield from impossible(result, suite.limit, lambda tensor: suite.counts(result.case, arithmetic, tensor))
    own = [_unwaived(check, suite) for check in result.checks]
    settled = settle(result.case, kind, own, profile.waiver, today)
    for said, check in zip(result.checks, settled.checks, strict=True):
        if (said.limit, said.waiver) != (check.limit, check.waiver):
            yield f"{said.name} was held to {_held(said)}, it is held to {_held(check)}"
    if result.status != settled.status:
        because = settled.problems or [f"{c.name} is {c.value}, limit {c.limit:g}" for c in settled.checks if not c.ok]
        yield f"{result.status}, but its checks say {settled.status}" + (f": {'; '.join(because)}" if because else "")
    if result.status in ("PASS", "WAIVED"):
        knob = result.case.published.id in suite.knobs
        yield from incomplete(result, knob, soaked, lambda tensor: suite.judged(result.case, arithmetic, tensor))


def _unwaived(check: Check, suite: Suite) -> Check:
    # A count below 1 is a problem of its own, and none has a limit.
    metric, count = check.name.rpartition(".")[2], max(check.count, 1.0)
    return msgspec.structs.replace(check, limit=suite.limit(metric, count), waiver="")


def _held(check: Check) -> str:
    return f"{check.limit:g}" + (f" by the waiver {check.waiver}" if check.waiver else "")


def _unchecked(result: CaseResult) -> Iterator[str]:
    """A case without a check has failed in another way, or was declined."""
    if result.status in ("PASS", "WAIVED"):
        yield f"{result.status} without a single check"
    elif result.status == "UNSUPPORTED":
        yield from unfounded(result)
    elif not result.message:
        yield f"{result.status} without a word why"
