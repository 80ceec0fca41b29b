"""`verify --again`: numbers that nobody measured do not come out again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec.structs import replace
from typer.testing import CliRunner
from xattn_conformance.cli.app import app
from xattn_conformance.result import CaseResult, Report, encode
from xattn_conformance.running import session
from xattn_conformance.running.again import again

FEW = "attention/causal+lse/float32/b?-q1?-k1?-*/needle"


@pytest.fixture(scope="module")
def honest() -> Report:
    """A run of three cases."""
    return session.run("reference", "cpu", "core", FEW, ("float32",), jobs=1)


def every(report: Report, change: Callable[[CaseResult], CaseResult]) -> Report:
    return replace(report, cases=tuple(map(change, report.cases)))


def test_an_honest_report_comes_out_again(honest: Report) -> None:
    found = again(honest, 3)
    assert found.problems == []
    assert (found.cases, found.same, found.differs) == (3, 3, ())
    assert again(honest, 2).cases == 2


def test_a_failure_that_was_called_a_pass_does_not(honest: Report) -> None:
    forged = replace(every(honest, lambda result: replace(result, status="WAIVED")))
    found = again(forged, 3).problems
    assert len(found) == 3
    assert all("WAIVED in the report, and PASS here" in said for said in found)


def test_outputs_that_were_made_up_do_not(honest: Report) -> None:
    forged = every(honest, lambda result: replace(result, output="0" * 64))
    found = again(forged, 1).problems
    assert len(found) == 1
    assert "on the same machine" in found[0]
    elsewhere = replace(forged, environment={**forged.environment, "torch": "2.0.0"})
    found_there = again(elsewhere, 1)
    assert (found_there.problems, found_there.same, found_there.differs) == ([], 0, ("torch",))


def test_inputs_that_were_made_up_do_not(honest: Report) -> None:
    forged = every(honest, lambda result: replace(result, inputs="0" * 64))
    assert "its inputs are 0000" in again(forged, 1).problems[0]


def test_the_command(honest: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it says; that its other half follows has tests of its own."""
    monkeypatch.setattr("xattn_conformance.reports.verify.verify", lambda report: [])
    monkeypatch.setenv("COLUMNS", "300")
    path = tmp_path / "reference.json"
    path.write_bytes(encode(honest))
    done = CliRunner().invoke(app, ("verify", str(path), "--again", "2"))
    assert done.exit_code == 0, done.output
    assert "2 cases run anew: as the report has them, 2 to the bit\n" in done.output
    path.write_bytes(encode(every(honest, lambda result: replace(result, output="0" * 64))))
    done = CliRunner().invoke(app, ("verify", str(path), "--again", "2"))
    assert done.exit_code == 1
    assert done.output.count("on the same machine") == 2
    path.write_bytes(encode(replace(honest, backend="nobody")))
    done = CliRunner().invoke(app, ("verify", str(path), "--again", "2"))
    assert done.exit_code != 0
    assert "nothing can be run anew here" in done.output
