"""Inputs that nobody has seen: an answer that was kept from the published ones passes no run."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import Distribution
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from conformance.strangers import PROFILE, honest, install
from support import Load
from typer.testing import CliRunner
from xattn_conformance.case import DTYPES, Case
from xattn_conformance.cli.app import app
from xattn_conformance.golden.inputs import every_case
from xattn_conformance.levels import HIGHEST
from xattn_conformance.ops.registry import OPS
from xattn_conformance.profiles import load as profiles
from xattn_conformance.result import Report, decode
from xattn_conformance.running import reach, selection, session

FEW = "attention/causal+lse/float32/b?-q1?-k1?-*/needle"


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> list[Case]:
    """A suite of three cases, of which a run is a claim."""
    cases = selection.select("core", ["float32"], FEW)

    def select(level: Any, dtypes: Any, pattern: str, ops: Any, seed: int = 0) -> list[Case]:
        return [msgspec.structs.replace(case, draw=seed) for case in cases]

    monkeypatch.setattr(session, "select", select)
    monkeypatch.setattr(session, "verify", lambda **_: [])
    monkeypatch.setattr(profiles, "admit", lambda *_: [])
    monkeypatch.setenv("COLUMNS", "300")
    return cases


@pytest.fixture
def run(few: list[Case], strangers: Path, load: Load, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    def make(body: str, *words: str) -> tuple[Any, Report]:
        for name, value in install(strangers, "acme", body, PROFILE).items():
            monkeypatch.setenv(name, value)
        load(Distribution.at(strangers / "acme-1.0.dist-info").entry_points)
        options = ("--backend", "acme", "--dtype", "float32", "--jobs", "1", "--out", str(strangers), *words)
        done = CliRunner().invoke(app, ("run", *options))
        return done, decode((strangers / "acme.json").read_bytes())

    return make


def memory(cases: list[Case]) -> str:
    """A backend that is right where it has seen q before, and twice as large elsewhere."""
    first = [OPS["attention"].problem(case).q.astype(np.float32).tobytes()[:16] for case in cases]
    return honest(after=f"found.out.mul_(1 if q.numpy().tobytes()[:16] in {first!r} else 2)")


def test_a_backend_that_knows_the_published_inputs_fails(few: list[Case], run: Callable[..., Any]) -> None:
    done, report = run(memory(few))
    known, fresh = report.cases[: len(few)], report.cases[len(few) :]
    assert [result.status for result in known] == ["PASS"] * 3
    assert [result.status for result in fresh] == ["FAIL"] * 3
    assert done.exit_code == 1
    assert f"; 0/3 on fresh inputs of seed {report.fresh}" in done.stdout
    assert {result.case.draw for result in fresh} == {report.fresh}
    again = f"--seed {report.fresh} --case {fresh[0].case.published.id}"
    assert again in fresh[0].reproduce
    assert again in done.stderr


def test_a_right_backend_passes_them_and_the_run_says_which(few: list[Case], run: Callable[..., Any]) -> None:
    done, report = run(honest())
    assert done.exit_code == 0, done.stdout + done.stderr
    assert [result.status for result in report.cases] == ["PASS"] * 6
    assert f"; 3/3 on fresh inputs of seed {report.fresh}" in done.stdout
    assert {result.id for result in report.cases[3:]} == {f"{case.id}@{report.fresh}" for case in few}


def test_a_run_on_other_inputs_says_their_seed(few: list[Case], run: Callable[..., Any]) -> None:
    done, report = run(memory(few), "--seed", "5")
    assert done.exit_code == 1
    assert [result.status for result in report.cases] == ["FAIL"] * 3
    assert (report.seed, report.fresh) == (5, 0)
    assert "inputs of seed 5" in done.stdout


@pytest.mark.parametrize("op", OPS)
def test_another_draw_has_other_inputs_and_the_same_call(op: str) -> None:
    for case in every_case(OPS[op])[:: len(every_case(OPS[op])) // 20]:
        other = msgspec.structs.replace(case, draw=3)
        assert other.published == case
        assert (other.id, other.seed == case.seed) == (f"{case.id}@3", False)
        one, two = (OPS[op].call(each, OPS[op].problem(each), "cpu") for each in (case, other))
        assert {n: t.shape for n, t in one.tensors.items()} == {n: t.shape for n, t in two.tensors.items()}


def test_the_fresh_cases_are_a_few_of_each_op_and_dtype_and_new_ones_each_time() -> None:
    cases = selection.select("core", DTYPES)
    one, again, other = (selection.fresh(cases, seed) for seed in (1, 1, 2))
    assert one == again
    assert len(one) == selection.FRESH * len(DTYPES) * len(OPS)
    assert {case.published.id for case in one} != {case.published.id for case in other}
    for case in one:
        op = OPS[case.op]
        assert op.digest(op.problem(case)) != op.digest(op.problem(case.published))


def test_a_run_without_a_level_reaches_what_is_declared() -> None:
    assert reach.level_of({"attention": ("causal", "gqa")}) == "core"
    assert reach.level_of({"attention": ("causal", "softcap")}) == "extended"
    assert reach.level_of({"attention": ("causal",), "apply_rotary": ("grad_qk",)}) == "full"
    for backend in ("reference", "sdpa"):
        words = reach.declared(backend)
        reached = {op: reach.used(op, reach.level_of(words)) for op in words}
        most = {op: reach.used(op, HIGHEST) for op in words}
        assert all(set(words[op]) & most[op] <= reached[op] for op in words)


@pytest.mark.parametrize("op", OPS)
def test_every_feature_of_an_op_has_a_case(op: str) -> None:
    """By the words of capability blocks, as the reference backend declares them."""
    features = {word for word in reach.declared("reference")[op] if not word.startswith("grad_")}
    assert not features - reach.used(op, HIGHEST)
