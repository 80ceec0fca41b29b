"""How often the comparison fails right kernels on inputs that the limits were not made with."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from typer.testing import CliRunner
from xattn_conformance.case import Case
from xattn_conformance.cli.app import app
from xattn_conformance.mutants import table
from xattn_conformance.mutants.table import Outcome, right_on
from xattn_conformance.ops.registry import OPS
from xattn_conformance.running.selection import select

FEW = "paged_attention/*/float32/b3-q5-*"

Judge = Callable[[Case], list[Outcome]]


def in_process(monkeypatch: pytest.MonkeyPatch, judge: Judge) -> list[Case]:
    """The cases that are judged, in this process."""
    judged: list[Case] = []

    def run_right(cases: Sequence[Case], jobs: int) -> Iterator[list[Outcome]]:
        judged.extend(cases)
        return map(judge, cases)

    monkeypatch.setattr(table, "run_right", run_right)
    return judged


def one_kernel(case: Case) -> list[Outcome]:
    return right_on(case, OPS[case.op].right_kernels()[:1])


def false_alarms(*words: str, case: str = FEW) -> Any:
    return CliRunner().invoke(app, ["false-alarms", "--case", case, *words], env={"COLUMNS": "200"})


def test_right_kernels_pass_on_other_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    judged = in_process(monkeypatch, one_kernel)
    done = false_alarms("--seeds", "2", "--first", "5", "--level", "core", case=f"{FEW}needle")
    assert done.exit_code == 0, done.output
    assert {case.draw for case in judged} == {5, 6}
    published = {case.published.id for case in judged}
    assert len(judged) == 2 * len(published)
    # No two calls on the same inputs, and none on the published ones.
    digests = {OPS[case.op].digest(OPS[case.op].problem(each)) for case in judged for each in (case, case.published)}
    assert len(digests) == 3 * len(published)
    want = f"None of {len(judged)} cases failed a right kernel: fewer than one in {len(judged) // 3}"
    assert want in done.stdout


def test_a_false_alarm_is_named_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    def judge(case: Case) -> list[Outcome]:
        failed = ("out.gain",) if case.family == "needle" else ()
        return [Outcome(name, case.id, case.family, case.dtype, failed, math.inf) for name in ("one", "another")]

    in_process(monkeypatch, judge)
    done = false_alarms()
    assert done.exit_code == 1
    alarms = [line for line in done.stderr.splitlines() if line.startswith("False alarm: ")]
    families = [line.split("/")[-1] for line in alarms]
    assert families
    assert all(family == "needle@1: out.gain" for family in families)
    # Both kernels failed on the same inputs: a case counts once.
    assert f"{len(alarms) // 2} of " in done.stdout


def test_a_sample_of_another_seed_has_other_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    judged = in_process(monkeypatch, lambda case: [])
    false_alarms("--sample", "--seeds", "12")
    by_seed = [{case.published.id for case in judged if case.draw == seed} for seed in range(1, 13)]
    every = len(select("full", ["float32"], FEW))
    assert all(len(some) < every / 3 for some in by_seed)
    assert len(set().union(*by_seed)) > every / 2
