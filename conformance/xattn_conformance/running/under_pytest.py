"""A session of pytest that judges backends, in one process or in several."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import msgspec
import pytest

from xattn_conformance.case import DTYPES
from xattn_conformance.cli.run import write
from xattn_conformance.levels import Level
from xattn_conformance.reports.claims import claims
from xattn_conformance.reports.junit import check_text, worst_text
from xattn_conformance.reports.tally import failing
from xattn_conformance.result import CaseResult, Report
from xattn_conformance.running import session as sessions
from xattn_conformance.running.pool import TIMEOUT, GivenUpError, Judging
from xattn_conformance.running.protocol import Start
from xattn_conformance.running.selection import select
from xattn_conformance.running.session import Session
from xattn_conformance.running.target import TargetError

# Where a test leaves its backend and result.
CASE = pytest.StashKey[tuple[str, CaseResult]]()
# The attribute of a pytest report that takes the result to the process that writes ours.
_RESULT = "xattn_result"


class _Opened(msgspec.Struct, frozen=True, kw_only=True):
    """What the processes of a distributed session are told, in which the backend need not be registered."""

    start: Start
    level: Level
    ops: tuple[str, ...]


class Conformance:
    """Sessions of the suite by backend, and the results as they come."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.sessions: dict[str, Session] = {}
        self.results: dict[str, list[CaseResult]] = {}
        self.workers: dict[str, Judging] = {}

    def pytest_sessionstart(self) -> None:
        """Goldens, profile and canaries before any case, once: of several processes, in the one that controls."""
        given = getattr(self.config, "workerinput", None)
        for backend in self.config.getoption("--xattn-backend"):
            self.results[backend] = []
            if given is None:
                self._open(backend)
            else:
                self._join(backend, msgspec.json.decode(given[f"xattn {backend}"], type=_Opened))

    def _open(self, backend: str) -> None:
        option = self.config.getoption
        level, pattern, processes = option("--xattn-level"), option("--xattn-case"), option("numprocesses", None) or 1
        try:
            each = sessions.opened(backend, option("--xattn-device"), level, pattern, DTYPES, processes)
            self.sessions[backend] = each
            worker = sessions.prepare(each, option("--xattn-profile"))
        except TargetError as error:
            raise pytest.UsageError(str(error)) from None
        if worker is None:
            self._write()
            pytest.exit(f"INVALID: {each.invalid}", returncode=3)
        self.workers[backend] = worker

    def _join(self, backend: str, opened: _Opened) -> None:
        """What the controlling process has opened and prepared, in another one."""
        pattern = self.config.getoption("--xattn-case")
        level, ops, start = opened.level, opened.ops, opened.start
        cases = select(level, DTYPES, pattern, ops)
        self.sessions[backend] = Session(
            backend, start.device, level, pattern, DTYPES, ops, cases, 1, TIMEOUT, start=start
        )

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        """Tell a process of a distributed session what was found to be in order."""
        for backend, each in self.sessions.items():
            assert each.start is not None
            opened = _Opened(start=each.start, level=each.level, ops=each.ops)
            node.workerinput[f"xattn {backend}"] = msgspec.json.encode(opened).decode()
        # The processes have workers of their own.
        for worker in self.workers.values():
            worker.close()

    def parameters(self) -> list[tuple[str, str]]:
        return [(backend, case.id) for backend, each in self.sessions.items() for case in each.cases]

    def ids(self) -> list[str]:
        several = len(self.sessions) > 1
        return [f"{backend}:{case}" if several else case for backend, case in self.parameters()]

    def judge(self, backend: str, case: str) -> CaseResult:
        each = self.sessions[backend]
        if backend not in self.workers:
            assert each.start is not None
            self.workers[backend] = Judging(each.start, each.timeout)
        try:
            return self.workers[backend].judge(next(known for known in each.cases if known.id == case))
        except GivenUpError as error:
            each.invalid = str(error)
            pytest.exit(f"INVALID: {error}", returncode=3)

    def told(self, result: CaseResult) -> str:
        """A failure in words."""
        lines = [f"{result.status}: {result.message}", *map(check_text, failing(result))]
        lines += [worst_text(result.worst)] if result.worst is not None else []
        lines += [result.detail] if result.detail else []
        return "\n".join([*lines, f"reproduce: {result.reproduce}"])

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        if call.when == "call" and CASE in item.stash:
            backend, result = item.stash[CASE]
            setattr(report, _RESULT, [backend, msgspec.json.encode(result).decode()])
        return report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if (found := getattr(report, _RESULT, None)) is not None:
            backend, result = found
            self.results[backend].append(msgspec.json.decode(result, type=CaseResult))

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if not hasattr(self.config, "workerinput"):
            for backend, each in self.sessions.items():
                self._once_more(backend, each)
        for worker in self.workers.values():
            worker.close()
        if hasattr(self.config, "workerinput"):
            return
        self._write()
        if session.exitstatus == 0 and not all(report.passed for report in self._reports()):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def _once_more(self, backend: str, each: Session) -> None:
        """What passed, in part on fresh inputs, after a session of every case: which cases is known only then."""
        if each.invalid or len(self.results[backend]) < len(each.cases):
            return
        for case in each.once_more(self.results[backend]):
            self.results[backend].append(self.judge(backend, case.id))

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        terminalreporter.section("xattn conformance")
        for report in self._reports():
            for claim in claims(report):
                terminalreporter.line(f"{report.backend} on {report.device}: {claim}")
            for result in report.cases:
                if result.case.draw and result.status != "PASS":
                    terminalreporter.line(f"{result.id}: {self.told(result)}")

    def _write(self) -> None:
        folder = self.config.getoption("--xattn-report")
        if folder is not None:
            for report in self._reports():
                write(report, folder)

    def _reports(self) -> list[Report]:
        found = []
        for backend, each in self.sessions.items():
            if not each.invalid and len(self.results[backend]) < len(each.cases):
                # Left out by -k or -x: that is no run of all cases, so no claim.
                each.selection = f"{self.config.getoption('--xattn-case')}, in part"
            found.append(each.report(self.results[backend]))
        return found
