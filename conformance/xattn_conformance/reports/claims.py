"""What a report lets its backend say of itself."""

from __future__ import annotations

from collections.abc import Sequence

from xattn_conformance.case import DTYPES
from xattn_conformance.levels import LEVELS, Level
from xattn_conformance.profiles.schema import ProfileError, parse
from xattn_conformance.reports.tally import required, share, tally
from xattn_conformance.result import EVERY, CaseResult, Provenance, Report
from xattn_conformance.running.reach import untested

# What each provenance means, in words.
PROVENANCE: dict[Provenance, str] = {
    "hardware": "on the vendor's hardware",
    "vendor code elsewhere": "on the vendor's code, but not on its hardware: no statement about the hardware",
    "stand-in": "on a stand-in: no statement about the hardware",
}
# From the strongest to the weakest.
STRENGTH: tuple[Provenance, ...] = ("hardware", "vendor code elsewhere", "stand-in")


def claims(report: Report) -> list[str]:
    """A sentence for each op and level up to the run's ("attention Core 1.0: 412/412, 0 waivers"), or one that says why
    there is none.

    Each counts the cases of that level alone: passed out of those that the backend had to execute, and of how many
    there are where it declined some: "38/38 of 537 cases". Waived cases are not passed. Each says on which inputs, and
    what the backend declares that no case of the run uses.
    """
    if report.invalid:
        return [f"No claim: the run is invalid: {report.invalid.splitlines()[0]}"]
    if report.selection != EVERY:
        return [f"No claim: chosen cases, {report.selection!r}"]
    if not report.executed:
        return ["No claim: nothing was executed"]
    try:
        executor = parse(report.profile).executor
    except ProfileError as error:
        return [f"No claim: the profile in the report is refused: {str(error).splitlines()[0]}"]
    levels = LEVELS[: LEVELS.index(report.level) + 1]
    return [_claim(report, op, level, executor) for op in report.ops for level in levels]


def _claim(report: Report, op: str, level: Level, executor: str) -> str:
    own = [result for result in report.cases if result.case.op == op]
    results = [result for result in own if result.case.level == level and result.case.draw == report.seed]
    counts = tally(results)
    declined = f" ({counts['UNSUPPORTED']} declined as declared)" if counts["UNSUPPORTED"] else ""
    missing = [dtype for dtype in DTYPES if dtype not in report.dtypes]
    only = f" ({', '.join(report.dtypes)} only)" if missing else ""
    name = f"{op} {level.capitalize()} {report.suite}{only}"
    if report.seed:
        name += f" on inputs of seed {report.seed}"
    if not required(counts):
        return f"{name}: no claim, nothing was executed{declined}"
    failed = counts["FAIL"] + counts["ERROR"] + counts["INVALID"]
    parts = [f"{name}: {share(counts)}{' cases' if declined else ''}", _waivers(results)]
    parts += [f"{failed} failed"] if failed else []
    by = f", run by the executor {executor}" if executor else ""
    told = _provenance(report, results) + by + _inputs(report, own) + _soaked(report) + _untested(report, op, level)
    return ", ".join(parts) + declined + told


def _inputs(report: Report, results: Sequence[CaseResult]) -> str:
    """What it passed on inputs that are not published. results: of one op."""
    if report.seed:
        return ""
    some = [result for result in results if result.case.draw]
    return f"; {share(tally(some))} on fresh inputs of seed {report.fresh}" if some else "; published inputs alone"


def _soaked(report: Report) -> str:
    return f"; each call made {report.soak} times more" if report.soak else ""


def _untested(report: Report, op: str, level: Level) -> str:
    """What the backend declares and no case up to a level uses."""
    levels = LEVELS[: LEVELS.index(level) + 1]
    left = untested(report.declared, (result for result in report.cases if result.case.level in levels)).get(op, ())
    words = [word.replace("grad_", "gradients of ") for word in left]
    return f"; declared and not tested at this level: {', '.join(words)}" if words else ""


def advice(report: Report) -> str:
    """What to write where a backend's author did not say that this is its hardware; empty where nothing is to say."""
    kind = report.environment.get("device", {}).get("kind")
    if report.provenance != "vendor code elsewhere" or report.invalid or kind is None:
        return ""
    try:
        profile = parse(report.profile)
    except ProfileError:
        return ""
    if profile.executor or kind in profile.hardware:
        return ""
    ships = report.profile_source.startswith("none:")
    where = f"{report.backend}.profile.toml beside the module of its class" if ships else "its profile"
    fields = f'schema = 1, backend = "{report.backend}", hardware = ["{kind}"]' if ships else f'"{kind}" in hardware'
    return f"Is {kind} the hardware that {report.backend} is made for? Then say so in {where}: {fields}."


def _waivers(results: Sequence[CaseResult]) -> str:
    waived = [result for result in results if result.status == "WAIVED"]
    count = len({check.waiver for result in waived for check in result.checks if check.waiver})
    if not waived:
        return "0 waivers"
    return f"{count} waiver{'s' * (count != 1)} on {len(waived)} case{'s' * (len(waived) != 1)}"


def _provenance(report: Report, results: Sequence[CaseResult]) -> str:
    """The weakest provenance among the cases that had to be executed, and how many have it if not all do."""
    found = [result.provenance for result in results if result.status != "UNSUPPORTED"]
    weakest = max([report.provenance, *found], key=STRENGTH.index)
    if weakest == "hardware":
        return ""
    count = len(found) if weakest == report.provenance else found.count(weakest)
    return f", {f'{count} of them ' if count < len(found) else ''}{PROVENANCE[weakest]}"
