"""The table of what was checked with what."""

from __future__ import annotations

from pathlib import Path

from conformance.reporting import small_report
from msgspec.structs import replace
from typer.testing import CliRunner
from xattn_conformance.cli.app import app
from xattn_conformance.reports.support import support
from xattn_conformance.result import CaseResult, Report, encode


def only(report: Report, keep: set[str]) -> Report:
    return replace(report, cases=tuple(result for result in report.cases if result.status in keep))


def declined(result: CaseResult, dtype: str) -> CaseResult:
    return replace(result, status="UNSUPPORTED") if result.case.dtype == dtype else result


def row(table: str, feature: str) -> list[str]:
    (line,) = [line for line in table.splitlines() if line.startswith(f"| {feature} |")]
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


def test_a_cell_says_what_passed_of_what_had_to_run() -> None:
    passed = only(small_report(), {"PASS"})
    count = sum("causal" in result.case.features for result in passed.cases)
    assert row(support([("a", passed)]), "causal") == [f"{count}/{count}"]


def test_a_dtype_that_is_declined_is_not_among_those_named() -> None:
    passed = only(small_report(), {"PASS"})
    halves = replace(passed, cases=tuple(declined(result, "float32") for result in passed.cases))
    count = sum("causal" in r.case.features and r.case.dtype != "float32" for r in passed.cases)
    assert row(support([("a", passed), ("b", halves)]), "causal")[1] == f"{count}/{count} f16, bf16"


def test_what_failed_stands_out_and_what_nobody_serves_is_declined() -> None:
    passed = only(small_report(), {"PASS"})
    failed = replace(passed, cases=(replace(passed.cases[0], status="FAIL"), *passed.cases[1:]))
    assert row(support([("a", failed)]), "all cases") == [f"**{len(passed.cases) - 1}/{len(passed.cases)}**"]
    none = replace(passed, cases=tuple(replace(result, status="UNSUPPORTED") for result in passed.cases))
    assert set(row(support([("a", none)]), "causal")) == {"declined"}


def test_each_column_says_whose_code_ran_where(tmp_path: Path) -> None:
    report = replace(small_report(), provenance="stand-in")
    (tmp_path / "acme.json").write_bytes(encode(report))
    shown = CliRunner().invoke(app, ["support", str(tmp_path / "acme.json")])
    assert shown.exit_code == 0
    (legend,) = [line for line in shown.stdout.splitlines() if line.startswith("- **acme**")]
    assert "on a stand-in: no statement about the hardware" in legend
    assert report.environment["device"]["name"] in legend
