"""What is done with reports once they are written: `compare`, `verify`, `support`, `html`, `junit`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from xattn_conformance.cli.terminal import FAILED, err, out, read, stop
from xattn_conformance.reports import compare as comparing
from xattn_conformance.reports import html as page
from xattn_conformance.reports import junit as xml
from xattn_conformance.reports import support as supporting
from xattn_conformance.reports import verify as verifying
from xattn_conformance.reports.claims import claims
from xattn_conformance.reports.side_by_side import side_by_side
from xattn_conformance.result import Report
from xattn_conformance.running.again import Again
from xattn_conformance.running.again import again as rerun
from xattn_conformance.running.target import TargetError

ReportFile = Annotated[Path, typer.Argument(metavar="REPORT", help="A report's JSON.")]
Output = Annotated[Path | None, typer.Option("--out", help="The file to write; by default beside the report.")]


def compare(
    a: Annotated[Path, typer.Argument(metavar="A", help="A report's JSON.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="Another's.")],
    json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Two reports side by side, cell by cell: of two backends or devices, or of one at two times."""
    comparison = comparing.compare(read(a), read(b))
    if json:
        print(comparison.json().decode())
    else:
        out().print(side_by_side(comparison))


def verify(
    report: ReportFile,
    again: Annotated[int, typer.Option(min=0, help="Run so many of its cases anew, drawn by chance, here.")] = 0,
) -> None:
    """Work out every status of a report again, from its checks, the suite's limits and its waivers.

    Exits with 1 where something does not follow.
    """
    found = read(report)
    problems = verifying.verify(found)
    anew = _again(found, again) if again and not problems else None
    for problem in [*problems, *(anew.problems if anew else ())]:
        err().print(Text.assemble(("Wrong: ", "bold red"), problem), soft_wrap=True)
    if problems or (anew and anew.problems):
        raise typer.Exit(FAILED)
    out().print(Text(f"{report}: every status of {len(found.cases)} cases follows from what was measured"))
    if anew:
        other = f"; this machine is another by its {', '.join(anew.differs)}" if anew.differs else ""
        out().print(Text(f"{anew.cases} cases run anew: as the report has them, {anew.same} to the bit{other}"))
    for claim in claims(found):
        out().print(Text(claim, style="bold"))


def _again(report: Report, count: int) -> Again:
    try:
        return rerun(report, count)
    except TargetError as error:
        stop(f"nothing can be run anew here: {error}")


def support(
    reports: Annotated[list[Path], typer.Argument(metavar="REPORT...", help="Reports' JSON, a column each.")],
) -> None:
    """A table in Markdown of what each feature was checked with, and where."""
    print(supporting.support([(path.name.partition(".")[0], read(path)) for path in reports]))


def html(report: ReportFile, to: Output = None) -> None:
    """The report as one page, which needs nothing beside it."""
    _write(report, to, ".html", page.html(read(report)).encode())


def junit(report: ReportFile, to: Output = None) -> None:
    """The report as JUnit XML."""
    _write(report, to, ".xml", xml.junit(read(report)))


def _write(report: Path, to: Path | None, ending: str, document: bytes) -> None:
    path = to or report.with_suffix(ending)
    try:
        path.write_bytes(document)
    except OSError as error:
        stop(f"{path}: {error.strerror}")
    out().print(Text(f"Written to {path}"))
