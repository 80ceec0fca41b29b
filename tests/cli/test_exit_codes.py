"""Every exit code means what --help says, JSON comes alone on stdout, and any width of terminal will do."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from cli.command_line import SMALL, Run, plain
from support import ROOT, Load, backend_source, extended, stranger

from xattn.cli.info import report

QUICK = [*SMALL, "--seconds", "0.02"]


@pytest.mark.parametrize("command", [["explain", *SMALL], ["bench", *QUICK]])
def test_1_nobody_can_serve_the_call(run: Run, command: list[str], strangers: Path, load: Load) -> None:
    body = 'def limits(self, request): return [xattn.Reason("headdim", request.headdim, 64, "Pad it.")]'
    load(stranger(strangers, "xattn-picky", backend_source("picky", 1.0, body=body)))
    result = run(*command, "--backend", "picky")
    assert result.exit_code == 1
    shown = result.stdout if command[0] == "explain" else result.stderr
    for part in ("No backend can serve this call", "headdim: 8, supported: 64", "Pad it.", "not asked"):
        assert part in shown, part


def test_1_comes_with_the_json(run: Run, strangers: Path, load: Load) -> None:
    body = 'def limits(self, request): return [xattn.Reason("headdim", request.headdim, 64)]'
    load(stranger(strangers, "xattn-picky", backend_source("picky", 1.0, body=body)))
    result = run("explain", *SMALL, "--backend", "picky", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["backend"] is None


@pytest.mark.parametrize("command", ["explain", "bench"])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--shape", "1,2,3"], "4 whole numbers"),
        (["--shape", "1,2,3,x"], "4 whole numbers"),
        (["--shape", "1,2,3,-4"], "4 whole numbers"),
        ([*SMALL, "--shape-k", "2,4"], "3 whole numbers"),
        ([*SMALL, "--shape-k", "2,4,4", "--seqlen-k", "4"], "not beside"),
        ([*SMALL, "--nheads-k", "3"], "a divisor of nheads"),
        ([*SMALL, "--shape-k", "3,4,4"], "the batch of q"),
        ([*SMALL, "--window", "4"], "LEFT,RIGHT"),
        ([*SMALL, "--window", "-1,0"], "None is open"),
        ([*SMALL, "--align", "left"], "bottom_right"),
        ([*SMALL, "--softcap", "0"], "None switches it off"),
        ([*SMALL, "--scale", "nan"], "a finite float"),
        ([*SMALL, "--dropout-p", "1"], "[0, 1)"),
        ([*SMALL, "--bias", "5,5"], "broadcastable"),
        ([*SMALL, "--seqlens-k", "4"], "seqlens_k"),
        ([*SMALL, "--seqlens-k", "4,5"], "0 to seqlen_k"),
        ([*SMALL, "--dtype", "float33"], "no dtype"),
        ([*SMALL, "--dtype", "int32"], "floating-point"),
        ([*SMALL, "--grad-bias"], "there is no --bias"),
        ([*SMALL, "--backend", "referenc"], 'Did you mean "reference"'),
        ([*SMALL, "--backend", ""], "backend"),
        ([], "--shape"),
        ([*SMALL, "--no-such-option"], "--no-such-option"),
    ],
    ids=lambda value: " ".join(value[-2:]) if isinstance(value, list) else "",
)
def test_2_wrong_usage(run: Run, command: str, options: list[str], message: str) -> None:
    result = run(command, *options, "--json", columns=200)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_2_bench_on_a_device_that_is_not_here(run: Run) -> None:
    result = run("bench", *QUICK, "--device", "neuron")
    assert result.exit_code == 2
    assert "this machine can time calls on: cpu" in result.stderr


@pytest.mark.parametrize("command", [[], ["info"], ["explain"], ["bench"]])
def test_help_lists_the_exit_codes(run: Run, command: list[str]) -> None:
    result = run(*command, "--help")
    assert result.exit_code == 0
    lines = [line.strip() for line in result.stdout.splitlines()]
    assert "Exit codes" in lines
    for code in ("0  fine", "1  no backend can serve the call", "2  wrong usage"):
        assert any(line.startswith(code) for line in lines), code


def shown_commands() -> list[str]:
    """What the pages show of `xattn info` and `xattn explain`."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    return [
        line.partition("  ")[0]  # a comment stands after it
        for page in pages
        for block in re.findall(r"^```\n(.*?)^```$", page.read_text(), re.M | re.S)
        for line in block.splitlines()
        if re.match(r"xattn (info|explain)\b", line)
    ]


@pytest.mark.parametrize("command", dict.fromkeys(shown_commands()))
def test_the_commands_that_the_pages_show(run: Run, command: str) -> None:
    result = run(*shlex.split(command)[1:])
    assert result.exit_code in (0, 1), result.stderr


@pytest.mark.parametrize("columns", [20, *extended(40, 80, 250)])
@pytest.mark.parametrize("command", [["info"], ["explain", *SMALL, "--device", "rocm"], ["bench", *QUICK], ["--help"]])
def test_any_width_of_terminal(run: Run, command: list[str], columns: int) -> None:
    result = run(*command, columns=columns)
    assert result.exit_code == 0
    assert result.stdout.strip()


def test_python_m_xattn_prints_json_alone() -> None:
    command = [sys.executable, "-m", "xattn", "info", "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    here = plain(report())
    there = json.loads(done.stdout)
    # The number of threads is this process's own affair.
    assert {**there, "devices": []} == {**here, "devices": []}


@pytest.mark.parametrize("missing", ["typer", "rich"])
def test_2_on_a_plain_install(missing: str) -> None:
    hidden = f"import sys; sys.modules[{missing!r}] = None; from xattn.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", hidden], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == f"xattn's command line needs {missing}: pip install 'xattn[cli]'\n"


def test_matplotlib_is_for_the_picture_alone(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert run("info").exit_code == 0
    assert run("bench", *QUICK).exit_code == 0
    refused = run("bench", *QUICK, "--out", str(tmp_path / "out"), columns=200)
    assert refused.exit_code == 2
    assert "the picture needs matplotlib: pip install 'xattn[cli]'" in refused.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", [[], ["info"], ["explain"], ["bench"]])
def test_flags_have_no_value_beside_their_names(run: Run, command: list[str]) -> None:
    assert "bool" not in run(*command, "--help", columns=200).stdout.replace("bool mask", "")


def test_importing_xattn_imports_nothing_of_the_command_line() -> None:
    code = "import sys, xattn; print([n for n in sys.modules if n.split('.')[0] in ('typer', 'rich', 'matplotlib')])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.stdout == "[]\n", done.stderr
