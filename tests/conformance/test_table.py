"""The table of mutants: counting, sampling, and how it is shown."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner
from xattn_conformance.case import DTYPES
from xattn_conformance.cli.app import app
from xattn_conformance.mutants import table, witnesses
from xattn_conformance.mutants.page import declared, page
from xattn_conformance.mutants.render import by_family, by_metric, metric_of, percent, result_of, terminal
from xattn_conformance.mutants.table import ANY, Outcome, counted, right_on, run_mutants, survivors, unshown
from xattn_conformance.mutants.witnesses import sample, witnesses_in
from xattn_conformance.mutants.zoo import OWN
from xattn_conformance.ops.attention.cases import load
from xattn_conformance.ops.attention.mutants.right import COARSEST, RIGHT
from xattn_conformance.ops.attention.mutants.zoo import MUTANTS
from xattn_conformance.tolerance.arithmetic import CANONICAL, Arithmetic


def outcome(kernel: str, *failed: str, dtype: str = "bfloat16", family: str = "normal") -> Outcome:
    return Outcome(kernel, "a case", family, dtype, failed, 2.0 if failed else 0.5)


OUTCOMES = [
    outcome("causal+1", "out.zmax", "out.zrow"),
    outcome("causal+1"),
    outcome("causal+1", "lse.zmax", family="needle"),
    outcome("zero", "out.exact"),
    outcome("row"),
    outcome("row", "out.zmax", dtype="float16"),
    outcome("dq-zero", "dq.zmax", "dq.finite"),
]


def test_counts_are_by_mutant_dtype_family_and_check() -> None:
    found = {tuple(line[key] for key in ("mutant", "dtype", "family", "check")): line for line in counted(OUTCOMES)}
    numbers = {key: (line["killed"], line["total"]) for key, line in found.items()}
    assert numbers["causal+1", "bfloat16", "normal", ANY] == (1, 2)
    assert numbers["causal+1", "bfloat16", "normal", "out.zrow"] == (1, 2)
    assert ("causal+1", "bfloat16", "needle", "out.zmax") not in numbers
    assert numbers["causal+1", "bfloat16", "needle", "lse.zmax"] == (1, 1)
    assert numbers["row", "bfloat16", "normal", ANY] == (0, 1)


def test_survivors_are_counted_in_each_dtype() -> None:
    assert survivors(OUTCOMES) == [("row", "bfloat16")]


def test_a_mutant_that_had_no_chance_to_show_is_named() -> None:
    missing = unshown(OUTCOMES, ["float16", "float32"])
    assert ("zero", "float16") in missing
    assert ("row", "float16") not in missing
    assert ("values-16-bit", "float32") not in missing


def test_checks_are_told_by_metric_and_by_result() -> None:
    assert [metric_of(check) for check in ("out.gain", "dq.finite", "lse.exact")] == ["gain", "rules", "rules"]
    assert [result_of(check) for check in ("out.gain", "dsinks.zmax", "probe.bias")] == ["out", "grads", "probe"]


def test_a_percentage_says_all_or_none_only_where_it_is_so() -> None:
    assert [percent(*counts) for counts in ((0, 0), (0, 9), (1, 1000), (999, 1000), (9, 9))] == [
        "",
        ".",
        "1",
        "99",
        "100",
    ]


def test_lines_hold_the_counts() -> None:
    header, lines = by_metric(OUTCOMES)
    of = {line[0]: dict(zip(header, line, strict=True)) for line in lines}
    assert list(of) == [mutant.name for mutant in MUTANTS if mutant.name in of]
    assert of["causal+1"] | {"bf16": "2/3", "zmax": "67", "zrow": "33", "lse": "33", "rules": "."} == of["causal+1"]
    assert of["row"] | {"fp16": "1/1", "bf16": "0/1", "fp32": ""} == of["row"]
    assert of["dq-zero"] | {"rules": "100", "grads": "100", "out": "."} == of["dq-zero"]
    header, lines = by_family(OUTCOMES)
    of = {line[0]: dict(zip(header, line, strict=True)) for line in lines}
    assert of["causal+1"] == {"mutant": "causal+1", "needle": "100", "normal": "50"}
    assert of["zero"]["needle"] == ""


def test_a_mutant_that_lives_is_red() -> None:
    console = Console(record=True, width=160, force_terminal=True, color_system="standard")
    with console.capture() as shown:
        console.print(*terminal(OUTCOMES))
    lines = shown.get().splitlines()
    assert any("row" in line and "\x1b[1;31m" in line for line in lines)
    assert not any("zero" in line and "\x1b[1;31m" in line for line in lines)


def test_the_page_has_each_mutant_once_and_what_is_not_caught() -> None:
    alarm = Outcome("tf32", "a case", "huge", "float32", ("out.zmax",), 3.5)
    posed = Outcome("one-buffer", "a case", "normal", "float16", ("state.refilled",), math.inf)
    text = page(OUTCOMES, [posed], [alarm, outcome("tf32", dtype="float16")], "a command", "7 cases")
    forward, backward = text.split("## Backward")[0], text.split("## Backward")[1].split("##")[0]
    assert "| `causal+1` | causal shows one key behind the diagonal |" in forward
    assert "`dq-zero`" in backward
    assert "`dq-zero`" not in forward
    of = [sum(dtype not in mutant.equivalent_in for mutant in OWN) for dtype in ("float32", "float16", "bfloat16")]
    assert f"| mutants killed | **0 of {of[0]}** | **1 of {of[1]}** | **3 of {of[2]}** |" in text
    assert "| `one-buffer` | out is written into the buffer of the call before |  | 1/1 |  | state.refilled |" in text
    assert "| `out-8-bit` | bfloat16 | out is bfloat16 already |" in text
    assert '| tf32 | products = "tf32", subnormals = "flushed" | 1/1 | 0/1 |  | 3.50 |' in text


def test_what_a_kernel_declares_is_what_differs() -> None:
    assert declared(CANONICAL) == ""
    assert declared(Arithmetic(scaled_q=True, exp_bits=16)) == "scaled_q = true, exp_bits = 16"


def test_the_coarsest_kernel_declares_everything() -> None:
    """Or a new declaration would be tried on no right kernel. Coarser probabilities and tanh there are none."""
    same = {name for name in Arithmetic.__struct_fields__ if getattr(COARSEST, name) == getattr(CANONICAL, name)}
    assert same == {"probabilities", "score_gradients", "tanh_bits"}


def test_a_sample_has_the_witnesses_and_the_same_cases_in_every_dtype() -> None:
    cases = load()
    picked = sample(cases)
    names = {case.id for case in picked}
    for dtype in DTYPES:
        assert all(witness in names for mutant in MUTANTS for witness in witnesses_in(mutant.name, dtype))
    assert len({sum(case.dtype == dtype for case in picked) for dtype in DTYPES}) == 1
    assert len(picked) < len(cases) / 2


def test_processes_give_what_one_process_gives() -> None:
    cases = [case for case in load() if case.title == "causal+lse" and case.shape["seqlen_q"] == 17][:2]
    (first, second) = run_mutants(cases, mutants=["zero", "causal+1"])
    assert [one.kernel for one in first] == ["causal+1", "zero"]
    assert {one.case for one in first + second} == {case.id for case in cases}
    assert all(one.failed and one.nearness > 1 for one in first + second)


def test_a_right_kernel_is_judged_by_what_it_declares() -> None:
    case = next(case for case in load() if case.title == "lse" and case.family == "normal" and case.dtype == "float32")
    coarse = next(kernel for kernel in RIGHT if kernel.name == "all of these")
    assert not right_on(case, [coarse])[0].failed
    strict = type(coarse)("strict", CANONICAL, coarse.run, coarse.serves)
    assert right_on(case, [strict])[0].failed


ONE = "attention/causal+lse/bfloat16/b1-q17-k17-h2-g2-d64-v64/needle"


def cli(*words: str) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, ["mutants", *words], env={"COLUMNS": "160"})
    return done.exit_code, done.stdout, done.stderr


def test_the_command_prints_and_writes_what_became_of_each(tmp_path: Path) -> None:
    code, shown, errors = cli("--case", ONE, "--jobs", "1", "--markdown", str(tmp_path / "mutants.md"))
    assert all(name in shown for name in ("causal+1", "needle", "tiles of 64"))
    assert "1 of 1 cases" in (tmp_path / "mutants.md").read_text()
    # In 17 keys a probability that is cut off is within its own rounding.
    assert code == 1
    assert "Alive: p-cut-off in bfloat16" in errors
    assert "Alive: causal+1" not in errors


def test_the_command_fails_for_a_survivor_and_for_a_false_alarm(monkeypatch: pytest.MonkeyPatch) -> None:
    wronged = Outcome("tiles of 64", ONE, "needle", "bfloat16", ("lse.finite",), math.inf)
    monkeypatch.setattr(witnesses, "run_impostors", lambda cases: iter([]))
    monkeypatch.setattr(table, "run_mutants", lambda cases, jobs: iter([OUTCOMES]))
    monkeypatch.setattr(table, "run_right", lambda cases, jobs: iter([[outcome("tiles of 16")]]))
    code, _, errors = cli("--case", ONE)
    assert code == 1
    assert "Alive: row in bfloat16" in errors
    monkeypatch.setattr(table, "run_mutants", lambda cases, jobs: iter([OUTCOMES[:4]]))
    assert cli("--case", ONE)[0] == 0
    code, _, errors = cli()
    assert code == 1
    assert "Alive: row in float32" in errors
    monkeypatch.setattr(table, "run_right", lambda cases, jobs: iter([[wronged]]))
    code, _, errors = cli("--case", ONE)
    assert code == 1
    assert f"Wronged: tiles of 64 in {ONE}: lse.finite" in errors
    monkeypatch.setattr(witnesses, "run_impostors", lambda cases: iter([[outcome("one-buffer")]]))
    assert "Alive: one-buffer in bfloat16" in cli("--case", ONE)[2]


@pytest.mark.parametrize("words", [("--case", "no/such/*"), ("--dtype", "float8"), ("--level", "most")])
def test_the_command_says_what_is_not_there(words: tuple[str, ...]) -> None:
    code, _, errors = cli(*words)
    assert code == 2
    assert "Error:" in errors
