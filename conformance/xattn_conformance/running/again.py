"""Some cases of a report, run anew on this machine: the one thing that shows whether its numbers were measured."""

from __future__ import annotations

import random
from dataclasses import dataclass

from xattn_conformance.profiles.schema import Profile, parse
from xattn_conformance.result import CaseResult, Report
from xattn_conformance.running.pool import TIMEOUT, DeadWorkerError, GivenUpError, Judging
from xattn_conformance.running.protocol import Start

# What decides about bits. Where one of them differs from the report's, other bits prove nothing.
_DECISIVE = ("torch", "cuda", "hip", "numpy", "platform", "device", "threads", "plugin", "backend", "executor")


@dataclass(frozen=True)
class Again:
    """problems: what did not come out as the report has it, a sentence each. cases: how many were run; same: how many
    gave the same bits. differs: what of this machine is not as the report has it, of what decides about bits."""

    problems: list[str]
    cases: int
    same: int
    differs: tuple[str, ...]


def again(report: Report, count: int, timeout: float = TIMEOUT) -> Again:
    """Run up to `count` of the cases that the backend executed, drawn by chance, on the report's device and under its
    profile. Inputs and statuses must be the report's, and where a repetition promises equal bits and the machine is the
    same, the outputs' bits as well.

    Raises TargetError where the backend, the device or the profile's executor is not here."""
    profile = parse(report.profile)
    executed = [result for result in report.cases if result.status in ("PASS", "FAIL", "WAIVED")]
    chosen = random.SystemRandom().sample(executed, min(count, len(executed)))
    threads = report.environment.get("threads")
    worker = Judging(Start(report.backend, report.device, report.profile, threads, soak=report.soak), timeout)
    try:
        here = worker.ready().environment
        found = [worker.judge(result.case) for result in chosen]
    except DeadWorkerError as death:
        return Again([f"the process that runs the cases anew {death}"], 0, 0, ())
    except GivenUpError as error:
        return Again([str(error)], 0, 0, ())
    finally:
        worker.close()
    differs = tuple(name for name in _DECISIVE if here.get(name) != report.environment.get(name))
    kind = report.environment["device"]["kind"]
    problems = [
        f"{then.id}: {said}"
        for then, now in zip(chosen, found, strict=True)
        for said in _compared(then, now, not differs and _repeats(then, profile, kind))
    ]
    same = sum(now.output == then.output for then, now in zip(chosen, found, strict=True))
    return Again(problems, len(chosen), same, differs)


def _repeats(result: CaseResult, profile: Profile, kind: str) -> bool:
    return profile.bitwise_for(kind).repeat or bool(result.case.options.get("deterministic"))


def _compared(then: CaseResult, now: CaseResult, bits: bool) -> list[str]:
    if now.status != then.status:
        return [f"{then.status} in the report, and {now.status} here: {now.message}"]
    if now.inputs != then.inputs:
        return [f"its inputs are {then.inputs} in the report, and {now.inputs} here"]
    if bits and now.output != then.output:
        return [f"its outputs are {then.output} in the report, and {now.output} here, on the same machine"]
    return []
