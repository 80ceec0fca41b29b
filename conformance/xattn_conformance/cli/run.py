"""`xattn-conformance run`: judge backends, and write their reports."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

import xattn
from xattn_conformance.case import DTYPES
from xattn_conformance.cli.suite import a_level
from xattn_conformance.cli.summary import failure, summary
from xattn_conformance.cli.terminal import FAILED, INVALID, OK, err, out, stop
from xattn_conformance.levels import LEVELS
from xattn_conformance.reports.html import html
from xattn_conformance.reports.junit import junit
from xattn_conformance.reports.tally import STATUSES
from xattn_conformance.result import CaseResult, Report, Status, encode
from xattn_conformance.running import session
from xattn_conformance.running.pool import TIMEOUT
from xattn_conformance.running.target import TargetError, default_device

# Statuses that are shown as they come.
_SHOWN: tuple[Status, ...] = ("FAIL", "ERROR", "INVALID")


def run(
    backend: Annotated[list[str], typer.Option(help="A backend's name; may be repeated. all: every one present.")],
    device: Annotated[
        str | None, typer.Option(help="torch's name: cpu, cuda, cuda:1, ... By default the backend's first one here.")
    ] = None,
    level: Annotated[
        str | None,
        typer.Option(
            help=f"{', '.join(LEVELS)}: each with all before it. By default the lowest that reaches all that "
            "the backend declares."
        ),
    ] = None,
    case: Annotated[str, typer.Option(help="A pattern of case ids, as a shell's.")] = "*",
    dtype: Annotated[list[str] | None, typer.Option(help=f"Of {', '.join(DTYPES)}; may be repeated.")] = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="Processes at once.")] = None,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds for a case before it is given up.")] = TIMEOUT,
    profile: Annotated[
        Path | None,
        typer.Option(help="In place of the backend's own: a file, or one that ships: aiter-interpreter, ..."),
    ] = None,
    out_folder: Annotated[
        Path | None, typer.Option("--out", help="Folder for BACKEND.json, BACKEND.xml and BACKEND.html.")
    ] = None,
    dump: Annotated[
        Path | None, typer.Option(help="With one case: its inputs, outputs, golden and sigma, as safetensors.")
    ] = None,
    memory: Annotated[
        float | None, typer.Option(min=0.5, help="GiB of the host that each process may hold. On a CPU a share of it.")
    ] = None,
    seed: Annotated[
        int, typer.Option(min=0, max=2**63 - 1, help="Draw other inputs than the published ones, which are 0.")
    ] = 0,
    soak: Annotated[
        int, typer.Option(min=0, help="Call each case so many times more, for rare races; raise --timeout with it.")
    ] = 0,
    json: Annotated[bool, typer.Option("--json", help="The report on stdout; of several backends, a list.")] = False,
) -> None:
    """Judge backends: every case a backend says it serves must run and agree, every other must be declined as it says.

    Exits with 0 only if something was executed and nothing failed.
    """
    dtypes = tuple(name for name in DTYPES if name in (dtype or DTYPES))
    if unknown := set(dtype or ()) - set(DTYPES):
        stop(f"no dtype {min(unknown)!r} in the suite: {', '.join(DTYPES)}")
    known_level = None if level is None else a_level(level)
    if out_folder is not None:
        _make(out_folder)
    reports = []
    for name in _present(device) if backend == ["all"] else backend:
        with _Live(name) as live:
            try:
                report = session.run(
                    name,
                    device,
                    known_level,
                    case,
                    dtypes,
                    jobs,
                    profile,
                    timeout,
                    progress=live.show,
                    dump=dump,
                    memory=None if memory is None else int(memory * 2**30),
                    seed=seed,
                    soak=soak,
                )
            except TargetError as error:
                stop(str(error))
        reports.append(report)
        written = [] if out_folder is None else write(report, out_folder)
        if not json:
            out().print(summary(report, written))
    if json:
        documents = [encode(report).decode() for report in reports]
        print(documents[0] if len(documents) == 1 else "[" + ",\n".join(documents) + "]")
    raise typer.Exit(max(map(_code, reports)))


def _make(folder: Path) -> None:
    """Before a run that may take an hour, not after it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        stop(f"--out {folder}: {error.strerror}")
    if not os.access(folder, os.W_OK):
        stop(f"--out {folder}: cannot be written to")


def write(report: Report, folder: Path) -> list[Path]:
    """The report and what is derived from it."""
    folder.mkdir(parents=True, exist_ok=True)
    documents = {"json": encode(report), "xml": junit(report), "html": html(report).encode()}
    paths = []
    for ending, document in documents.items():
        paths.append(folder / f"{report.backend}.{ending}")
        paths[-1].write_bytes(document)
    return paths


def _code(report: Report) -> int:
    if report.invalid:
        return INVALID
    return OK if report.passed else FAILED


def _present(device: str | None) -> list[str]:
    """Every backend that is installed, enabled, and has a device here."""
    present = []
    for name in xattn.backends():
        try:
            _ = device or default_device(name)
        except TargetError as error:
            err().print(Text.assemble(("Left out: ", "bold yellow"), str(error)), soft_wrap=True)
        else:
            present.append(name)
    return present or stop("no backend has a device here")


class _Live:
    """A bar with counts on stderr, and failures above it as they come."""

    def __init__(self, backend: str) -> None:
        self._console: Console = err()
        self._counts: dict[Status, int] = {}
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[counts]}"),
            console=self._console,
        )
        self._task = self._progress.add_task(f"{backend}: goldens, profile, canaries", total=None, counts="")
        self._backend = backend

    def __enter__(self) -> _Live:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def show(self, total: int, result: CaseResult | None) -> None:
        if result is None:
            self._progress.update(self._task, description=self._backend, total=total)
            return
        self._counts[result.status] = self._counts.get(result.status, 0) + 1
        counts = " ".join(f"{self._counts[status]} {status}" for status in STATUSES if status in self._counts)
        self._progress.update(self._task, advance=1, counts=counts)
        if result.status in _SHOWN:
            self._progress.console.print(failure(result), soft_wrap=True)
