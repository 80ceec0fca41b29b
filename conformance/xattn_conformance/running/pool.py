"""Worker processes, seen from the runner: asked one thing at a time, replaced when they crash, hang or rave."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType

import msgspec

from xattn_conformance.case import Case
from xattn_conformance.result import Canary, CaseResult, Provenance
from xattn_conformance.running.protocol import (
    Canaries,
    Caught,
    Judge,
    Judged,
    Numbered,
    Ready,
    Refused,
    Reply,
    Request,
    Start,
    decode_reply,
    encode,
)
from xattn_conformance.running.reproduce import command
from xattn_conformance.running.target import TargetError

TIMEOUT = 120.0
# A worker's start imports torch and the plugins, and its first case the vendor's package.
_FIRST = 3

# A backend that does nothing but hang, or crash, ends its run after so many cases in a row in one worker's place: each
# hang takes as long as a case may, and a suite of them days.
HUNG_IN_A_ROW = 3
LOST_IN_A_ROW = 10

# Seconds for reading what a worker wrote before it died, should something hold its pipe open for good.
_LAST_WORDS = 1.0

# So much of what a worker printed stands beside a case that killed it.
_TAIL = 4000
# And so much of a line that is no answer.
_SHOWN = 80


class DeadWorkerError(RuntimeError):
    """A worker ended, or was ended, before it answered as it should. printed: the end of what it had printed. hung:
    whether it was still at work when its time was up."""

    def __init__(self, message: str, printed: str, hung: bool) -> None:
        super().__init__(message)
        self.printed = printed
        self.hung = hung


class GivenUpError(RuntimeError):
    """One worker after the other was lost: there is no sense in starting more. lost: what became of the last case."""

    def __init__(self, message: str, lost: CaseResult) -> None:
        super().__init__(message)
        self.lost = lost


class Process:
    """One worker process, from its start to its end."""

    def __init__(self, start: Start, timeout: float) -> None:
        self._printed = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `end`
        self._process = subprocess.Popen(
            [sys.executable, "-m", "xattn_conformance.running"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._printed,
            env={**os.environ, **_threads(start.threads)},
            start_new_session=True,  # what the vendor's code starts in turn is in one group with it
        )
        # Lines of the worker, and None once it is dead.
        self._answers: SimpleQueue[bytes | None] = SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._reader.start()
        self._watcher.start()
        self._timed_out = False
        self._number = 0
        self.first = True
        reply = self.ask(start, max(_FIRST * timeout, TIMEOUT))
        if isinstance(reply, Refused):
            self.end()
            raise TargetError(reply.message)
        assert isinstance(reply, Ready)
        self.ready = reply

    def ask(self, request: Request, timeout: float) -> Reply:
        """Raises DeadWorkerError where no answer comes, or another than to this request."""
        assert self._process.stdin is not None
        self._number += 1
        timer = threading.Timer(timeout, self._give_up)
        timer.start()
        try:
            with contextlib.suppress(BrokenPipeError):  # its death is told below
                self._process.stdin.write(encode(Numbered(self._number, request)) + b"\n")
                self._process.stdin.flush()
            line = self._answers.get()
        finally:
            timer.cancel()
        if line is not None:
            if (reply := self._reply(line)) is not None:
                return reply
            message = f"answered with something else: {line[:_SHOWN].decode(errors='replace').strip()!r}"
        else:
            message = f"gave no answer within {timeout:g} s" if self._timed_out else _epitaph(self._process.wait())
        self.end(kept=True)
        printed = self._tail()
        self._printed.close()
        raise DeadWorkerError(message, printed, line is None and self._timed_out)

    def _reply(self, line: bytes) -> Reply | None:
        """What the line says in answer to the last request; None where it is no such answer: the vendor's code may have
        written on a descriptor that is not its own."""
        try:
            found = decode_reply(line)
        except msgspec.DecodeError:
            return None
        reply: Reply = found.message
        return reply if found.number == self._number else None

    def end(self, *, kept: bool = False) -> None:
        """kept: what it printed can still be read."""
        self._process.kill()
        self._watcher.join()
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # what was left to write went to a dead process
            self._process.stdin.close()
        if not kept:
            self._printed.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as replies:
            for line in replies:
                if line.endswith(b"\n"):  # otherwise it died as it wrote
                    self._answers.put(line)

    def _watch(self) -> None:
        """The end of its output is no sign of its death: what it started in turn may hold the pipe open."""
        self._process.wait()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._reader.join(_LAST_WORDS)
        self._answers.put(None)

    def _give_up(self) -> None:
        self._timed_out = True
        self._process.kill()

    def _tail(self) -> str:
        size = self._printed.seek(0, os.SEEK_END)
        self._printed.seek(max(0, size - _TAIL))
        return self._printed.read().decode(errors="replace").strip()


class Judging:
    """Judges cases in one process after the other. Raises TargetError where the target is not there to begin with."""

    def __init__(self, start: Start, timeout: float = TIMEOUT) -> None:
        self._start, self._timeout = start, timeout
        self._process: Process | None = None
        self._provenance: Provenance = "vendor code elsewhere"
        # The cases since the last that was answered: True for a worker that hung, False for one lost in another way.
        self._hung: list[bool] = []

    def ready(self) -> Ready:
        """Start a process, if there is none."""
        if self._process is None:
            self._process = Process(self._start, self._timeout)
            self._provenance = self._process.ready.provenance
        return self._process.ready

    def judge(self, case: Case, dump: Path | None = None) -> CaseResult:
        """Whatever becomes of the process is the case's result. Raises GivenUpError after too many in a row."""
        try:
            self.ready()
            assert self._process is not None
            timeout = self._timeout * (_FIRST if self._process.first else 1)
            reply = self._process.ask(Judge(case, None if dump is None else str(dump.resolve())), timeout)
        except DeadWorkerError as death:
            self._process = None
            return self._lost(case, death)
        assert isinstance(reply, Judged)
        self._process.first = False
        self._hung.clear()
        if reply.ended:
            self.close()
        return reply.result

    def canaries(self, names: tuple[str, ...], dtype: str) -> tuple[Canary, ...]:
        self.ready()
        assert self._process is not None
        reply = self._process.ask(Canaries(names, dtype), _FIRST * TIMEOUT)
        assert isinstance(reply, Caught)
        return reply.canaries

    def close(self) -> None:
        if self._process is not None:
            self._process.end()
            self._process = None

    def _lost(self, case: Case, death: DeadWorkerError) -> CaseResult:
        lost = self._result(case, death)
        self._hung.append(death.hung)
        if all(self._hung[-HUNG_IN_A_ROW:]) and len(self._hung) >= HUNG_IN_A_ROW:
            row = f"{HUNG_IN_A_ROW} processes in a row gave no answer in time"
        elif len(self._hung) >= LOST_IN_A_ROW:
            row = f"{LOST_IN_A_ROW} processes in a row gave no answer"
        else:
            return lost
        raise GivenUpError(f"stopped: {row}; the last, which ran {case.id}, {death}", lost)

    def _result(self, case: Case, death: DeadWorkerError) -> CaseResult:
        return CaseResult(
            id=case.id,
            case=case,
            status="ERROR",
            provenance=self._provenance,
            message=f"the process that ran the case {death}",
            detail=death.printed,
            reproduce=command(
                case, self._start.backend, self._start.device, self._start.profile_file, self._start.soak
            ),
        )


class Pool:
    """Several of them at once."""

    def __init__(self, members: Sequence[Judging]) -> None:
        self.members = members
        self._closed = threading.Event()

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._closed.set()
        for member in self.members:
            member.close()

    def judge(self, cases: Sequence[Case]) -> Iterator[CaseResult]:
        """Results as they come, started in the order of `cases`."""
        todo: SimpleQueue[Case | None] = SimpleQueue()
        done: SimpleQueue[CaseResult | Exception] = SimpleQueue()
        for each in (*cases, *[None] * len(self.members)):
            todo.put(each)

        def work(member: Judging) -> None:
            try:
                while (case := todo.get()) is not None and not self._closed.is_set():
                    done.put(member.judge(case))
            except Exception as error:  # the runner's own: it belongs to whoever reads the results
                done.put(error)

        for member in self.members:
            threading.Thread(target=work, args=(member,), daemon=True).start()
        for _ in cases:
            found = done.get()
            if isinstance(found, Exception):
                raise found
            yield found


def _epitaph(code: int) -> str:
    return f"died of {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"


def _threads(count: int | None) -> dict[str, str]:
    """NumPy's matrix products have threads of their own, which only the environment can number."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    return {} if count is None else {name: os.environ.get(name, str(count)) for name in names}
