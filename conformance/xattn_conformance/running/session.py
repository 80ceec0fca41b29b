"""A whole run of one backend: goldens, profile, canaries, cases, report."""

from __future__ import annotations

import datetime
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from xattn_conformance.case import DTYPES, Case
from xattn_conformance.golden.manifest import manifest_digest
from xattn_conformance.golden.verify import verify
from xattn_conformance.levels import HIGHEST, Level
from xattn_conformance.profiles import load as profiles
from xattn_conformance.profiles.schema import ProfileError
from xattn_conformance.result import EVERY, SCHEMA, SUITE, Canary, CaseResult, Provenance, Report
from xattn_conformance.running import canaries, environment, reach, target
from xattn_conformance.running import memory as memories
from xattn_conformance.running.pool import TIMEOUT, DeadWorkerError, GivenUpError, Judging, Pool
from xattn_conformance.running.protocol import Start
from xattn_conformance.running.selection import fresh, select, served, slowest_first
from xattn_conformance.running.target import TargetError

# Told how many cases there are, and then each result as it comes.
Progress = Callable[[int, CaseResult | None], None]


@dataclass
class Session:
    """What a run is about, and what it found out before its first case. invalid: why there is none."""

    backend: str
    device: str
    level: Level
    selection: str
    dtypes: tuple[str, ...]
    ops: tuple[str, ...]
    cases: list[Case]
    jobs: int
    timeout: float
    memory: int | None = None
    seed: int = 0
    fresh: int = 0
    soak: int = 0
    declared: dict[str, tuple[str, ...]] = field(default_factory=dict)
    start: Start | None = None
    invalid: str = ""
    profile: str = ""
    profile_source: str = ""
    provenance: Provenance = "vendor code elsewhere"
    environment: dict[str, Any] = field(default_factory=environment.here)
    canaries: tuple[Canary, ...] = ()
    started: datetime.datetime = field(default_factory=lambda: datetime.datetime.now(datetime.timezone.utc))
    clock: float = field(default_factory=time.perf_counter)

    @property
    def claims(self) -> bool:
        """Whether its report is a claim. A run of chosen cases is none."""
        return self.selection == EVERY

    def once_more(self, results: Iterable[CaseResult]) -> list[Case]:
        """The cases to run on fresh inputs, out of those that passed: in a run of the published ones."""
        if not self.claims or self.seed:
            return []
        found = fresh((result.case for result in results if result.status == "PASS"), self.fresh)
        self.cases += found
        return found

    def report(self, results: Sequence[CaseResult]) -> Report:
        order = {case.id: place for place, case in enumerate(self.cases)}
        return Report(
            schema=SCHEMA,
            suite=SUITE,
            backend=self.backend,
            device=self.device,
            level=self.level,
            dtypes=self.dtypes,
            selection=self.selection,
            started=self.started.isoformat(timespec="seconds"),
            seconds=time.perf_counter() - self.clock,
            provenance=self.provenance,
            goldens=manifest_digest(),
            invalid=self.invalid,
            environment=self.environment,
            profile=self.profile,
            profile_source=self.profile_source,
            canaries=self.canaries,
            ops=self.ops,
            seed=self.seed,
            fresh=self.fresh if any(case.draw for case in self.cases) and not self.seed else 0,
            soak=self.soak,
            declared=self.declared,
            untested=reach.untested(self.declared, results),
            cases=tuple(sorted(results, key=lambda result: order[result.id])),
        )


def run(
    backend: str,
    device: str | None = None,
    level: Level | None = None,
    case: str = EVERY,
    dtypes: Sequence[str] = DTYPES,
    jobs: int | None = None,
    profile: Path | None = None,
    timeout: float = TIMEOUT,
    progress: Progress = lambda total, result: None,
    dump: Path | None = None,
    memory: int | None = None,
    seed: int = 0,
    soak: int = 0,
) -> Report:
    """Judge a backend and report.

    device:  torch's name for it; None is the first that the backend declares and this machine has.
    level:   with all below it; None is the lowest that reaches everything that the backend declares, and for chosen
             cases all.
    case:    a pattern of ids, as a shell's.
    jobs:    processes at once; None is one a CPU, up to 8, on a CPU, up to 4 on CUDA, and otherwise one.
    profile: a file in place of the backend's own profile.
    timeout: seconds for a case before it is given up; the first of a process, which imports, gets three times that.
    dump:    a file for the tensors of the case, where there is one alone.
    memory:  bytes of the host that each process may hold; None is, on a CPU, a share of what there is.
    seed:    of the inputs; 0 is the published ones, and then a run of every case takes a few of those that passed once
             more, on inputs of a seed that the second gives.
    soak:    how many times more each case is called, but those that ask whether an option does anything.

    Raises TargetError for a backend, device or selection that is not there. What makes a run invalid is in the report,
    which then has no cases (goldens that do not verify, a profile that is refused, a wrong kernel that is not caught)
    or those that were judged before the run was given up.
    """
    session = opened(backend, device, level, case, dtypes, jobs, timeout, seed)
    session.memory, session.soak = memory, soak
    if dump is not None and len(session.cases) != 1:
        raise TargetError(f"a dump is of one case, and {len(session.cases)} match {case!r}")
    if dump is not None and (dump.is_dir() or not dump.parent.is_dir()):
        raise TargetError(f"a dump is a file in a folder that is there, which {dump} is not")
    first = prepare(session, profile)
    if first is None:
        return session.report(())
    assert session.start is not None
    results: list[CaseResult] = []

    def judged(result: CaseResult) -> None:
        results.append(result)
        progress(len(session.cases), result)

    with Pool([first, *(Judging(session.start, timeout) for _ in range(session.jobs - 1))]) as pool:
        progress(len(session.cases), None)
        try:
            for result in [first.judge(session.cases[0], dump)] if dump else pool.judge(slowest_first(session.cases)):
                judged(result)
            more = session.once_more(results)
            progress(len(session.cases), None)
            for result in pool.judge(more):
                judged(result)
        except GivenUpError as error:
            judged(error.lost)
            session.invalid = f"{error}. It judged {len(results)} of {len(session.cases)} cases"
    return session.report(results)


def opened(
    backend: str,
    device: str | None,
    level: Level | None,
    case: str,
    dtypes: Sequence[str],
    jobs: int | None = None,
    timeout: float = TIMEOUT,
    seed: int = 0,
) -> Session:
    """A run that nothing was done for yet. Raises TargetError."""
    target.check_backend(backend)
    device = device or target.default_device(backend)
    ops = served(backend)
    if level is None:
        level = reach.level_of(reach.declared(backend)) if case == EVERY else HIGHEST
    cases = select(level, dtypes, case, ops, seed)
    if not cases:
        what = f"no case of level {level} in {', '.join(dtypes)} matches {case!r}"
        raise TargetError(f"{what} among those of the ops that {backend} has: {', '.join(ops)}")
    workers = max(1, min(_processes(device) if jobs is None else jobs, len(cases)))
    found = Session(backend, device, level, case, tuple(dtypes), ops, cases, workers, timeout, seed=seed)
    found.fresh = int(found.started.timestamp())
    return found


def prepare(session: Session, profile: Path | None = None) -> Judging | None:
    """Everything that comes before the first case; fills in the session. Returns a worker that stands ready, or None
    for a run that is invalid. Raises TargetError where the worker finds no such device or executor."""
    # A run of chosen cases makes no claim: the hash of each one's inputs is looked at as it is judged, and that is all.
    if session.claims and (problems := verify(ops=session.ops)):
        more = f" (and {len(problems) - 1} more; see verify-goldens)" if problems[1:] else ""
        session.invalid = f"the goldens do not verify: {problems[0]}{more}"
        return None
    try:
        loaded = profiles.load(session.backend, profile, admitted=session.claims)
    except ProfileError as error:
        session.invalid = str(error)
        return None
    session.profile, session.profile_source = loaded.text, loaded.source
    threads = 1 if session.jobs > 1 and session.device.startswith("cpu") else None
    held = memories.share(session.device, session.jobs) if session.memory is None else session.memory
    session.start = Start(session.backend, session.device, loaded.text, threads, _shown(profile), held, session.soak)
    worker = Judging(session.start, session.timeout)
    try:
        ready = worker.ready()
        session.provenance, session.declared = ready.provenance, ready.declared
        session.environment = {**ready.environment, **session.environment}
        session.canaries = worker.canaries(canaries.chosen(session.started, session.dtypes[0]), session.dtypes[0])
    except DeadWorkerError as death:
        session.invalid = f"the process that prepared the run {death}\n{death.printed}".rstrip()
        return None
    if loose := [canary.name for canary in session.canaries if not canary.caught_by]:
        session.invalid = f"wrong kernels pass the comparison: {', '.join(loose)}"
        worker.close()
        return None
    return worker


def _shown(profile: Path | None) -> str:
    """A file as a report may name it: as it was given, but no folder of this machine."""
    if profile is None:
        return ""
    return profile.name if profile.is_absolute() else str(profile)


def _processes(device: str) -> int:
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return {"cpu": min(cpus, 8), "cuda": min(cpus, 4)}.get(device.partition(":")[0], 1)
