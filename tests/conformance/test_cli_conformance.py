"""`xattn-conformance` from outside: exit codes, what is printed, what is written."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors import safe_open
from strangers import PROFILE, honest, install
from xattn_conformance.result import Report, decode

FEW = "attention/causal+lse/float32/b?-q1?-k1?-*/needle"
ONE = "attention/causal+lse/float32/b1-q17-k17-h2-g2-d64-v64/needle"


def cli(
    *words: str, environment: dict[str, str] | None = None, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("XATTN_")}
    return subprocess.run(
        [sys.executable, "-m", "xattn_conformance", *words],
        env={**clean, "COLUMNS": "200", **(environment or {})},
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
    )


def run(
    *words: str, backend: str = "reference", environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return cli("run", "--backend", backend, "--dtype", "float32", *words, environment=environment)


def test_a_run_that_passes(tmp_path: Path) -> None:
    done = run("--case", FEW, "--out", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 PASS" in done.stdout
    assert "Canary zero: caught by" in done.stdout
    assert f"No claim: only the cases '{FEW}' were run" in done.stdout
    report = decode((tmp_path / "reference.json").read_bytes())
    assert [result.status for result in report.cases] == ["PASS"] * 3
    assert report.passed
    assert [bool(canary.caught_by) for canary in report.canaries] == [True, True]
    assert (tmp_path / "reference.xml").read_text().startswith("<?xml")
    assert "<html" in (tmp_path / "reference.html").read_text()
    check_environment(report)


def check_environment(report: Report) -> None:
    assert report.environment["device"]["kind"] == "cpu"
    assert report.environment["plugin"]["distribution"] == "xattn"
    assert report.environment["suite"] == "1.0"
    assert len(report.goldens) == 64
    assert str(Path.home()) not in str(report.environment)
    assert os.uname().nodename not in str(report.environment)


def test_failures_are_printed_with_their_command_which_shows_them_again(tmp_path: Path) -> None:
    wrong = honest(after="found.out.mul_(1.01)")
    environment = install(tmp_path / "strangers", "acme", wrong)
    done = run("--case", FEW, backend="acme", environment=environment)
    assert done.returncode == 1
    assert done.stderr.count("FAIL attention/") == 3
    commands = [line.strip() for line in done.stderr.splitlines() if line.strip().startswith("xattn-conformance run")]
    assert len(commands) == 3
    again = cli(*shlex.split(commands[0])[1:], environment=environment)
    assert again.returncode == 1
    assert "1 FAIL" in again.stdout


def test_crashes_hangs_and_lies_in_one_run(tmp_path: Path) -> None:
    before = "import os, time; n = q.shape[1]; os.abort() if n == 15 else time.sleep(600) if n == 16 else None"
    environment = install(tmp_path / "strangers", "acme", honest(before=before))
    done = run("--case", FEW, "--timeout", "3", "--out", str(tmp_path), backend="acme", environment=environment)
    assert done.returncode == 1
    report = decode((tmp_path / "acme.json").read_bytes())
    assert [(result.status, result.message) for result in report.cases] == [
        ("ERROR", "the process that ran the case died of SIGABRT"),
        ("ERROR", "the process that ran the case gave no answer within 3 s"),
        ("PASS", ""),
    ] or [result.status for result in report.cases] == ["ERROR", "ERROR", "PASS"]


def test_nothing_executed_is_a_failure(tmp_path: Path) -> None:
    declines = "def limits(self, request):\n    return [xattn.Reason('causal', True, 'off')]"
    environment = install(tmp_path / "strangers", "acme", honest(more=declines))
    done = run("--case", FEW, backend="acme", environment=environment)
    assert done.returncode == 1
    assert "3 UNSUPPORTED" in done.stdout
    assert "Nothing was executed" in done.stdout


def test_a_backend_without_a_profile_is_held_to_the_canonical_arithmetic(tmp_path: Path) -> None:
    environment = install(tmp_path / "strangers", "acme", honest(), profile="")
    done = run("--case", ONE, "--out", str(tmp_path), backend="acme", environment=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    report = decode((tmp_path / "acme.json").read_bytes())
    assert report.provenance == "vendor code elsewhere"
    assert "ships no acme.profile.toml" in report.profile_source


INVALID = {
    "rtol": PROFILE + "rtol = 1.0\n",
    "unknown": PROFILE + "\n[tolerance]\natol = 2.0\n",
}


@pytest.mark.parametrize("name", INVALID)
def test_a_refused_profile_makes_the_run_invalid(name: str, tmp_path: Path) -> None:
    profile = tmp_path / "mine.toml"
    profile.write_text(INVALID[name].format("reference"))
    done = run("--case", ONE, "--profile", str(profile), "--out", str(tmp_path))
    assert done.returncode == 3
    assert "Tolerances are not declared" in done.stdout
    report = decode((tmp_path / "reference.json").read_bytes())
    assert not report.passed
    assert report.cases == ()
    assert "No claim: the run is invalid" in done.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--backend", "nobody"), "no backend or plugin is called 'nobody'"),
        (("--backend", "reference", "--case", "of/nothing"), "matches 'of/nothing'"),
        (("--backend", "reference", "--level", "high"), "no level 'high'"),
        (("--backend", "reference", "--dtype", "float8"), "no dtype 'float8'"),
        (("--backend", "reference", "--device", "cuda:7", "--case", ONE), "no device 'cuda:7' here"),
        (("--backend", "reference", "--case", FEW, "--dump", "x.safetensors"), "a dump is of one case, and 3 match"),
        ((), "backend"),
    ],
)
def test_wrong_usage(words: tuple[str, ...], said: str, tmp_path: Path) -> None:
    done = cli("run", *words, cwd=tmp_path)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_disabled_backend_is_said_at_the_start() -> None:
    done = run("--case", ONE, environment={"XATTN_DISABLE": "reference"})
    assert done.returncode == 2
    assert "disabled by XATTN_DISABLE=reference" in done.stderr


def test_a_dump_holds_the_case(tmp_path: Path) -> None:
    done = run("--case", ONE, "--dump", str(tmp_path / "one.safetensors"))
    assert done.returncode == 0
    with safe_open(tmp_path / "one.safetensors", "np") as dump:
        shapes = {name: dump.get_tensor(name).shape for name in dump.keys()}  # noqa: SIM118 - no mapping
        out, golden = dump.get_tensor("outputs.out"), dump.get_tensor("golden.out")
    assert set(shapes) == {
        *(f"inputs.{name}" for name in "qkv"),
        *(f"{what}.{name}" for what in ("outputs", "golden", "sigma") for name in ("out", "lse")),
    }
    assert shapes["inputs.q"] == shapes["outputs.out"] == (1, 17, 2, 64)
    assert abs(out.transpose(0, 2, 1, 3) - golden).max() < 1e-4


def test_list_and_reports(tmp_path: Path) -> None:
    listed = cli("list", "--level", "core", "--case", FEW)
    assert len(listed.stdout.splitlines()) == 3
    assert run("--case", FEW, "--out", str(tmp_path)).returncode == 0
    report = str(tmp_path / "reference.json")
    verified = cli("verify", report)
    assert verified.returncode == 0, verified.stderr
    assert cli("compare", report, report).returncode == 0
    assert cli("html", report, "--out", str(tmp_path / "page.html")).returncode == 0
    assert cli("junit", report, "--out", str(tmp_path / "j.xml")).returncode == 0
    assert (tmp_path / "page.html").read_text() == (tmp_path / "reference.html").read_text()
    text = (tmp_path / "reference.json").read_text()
    (tmp_path / "lie.json").write_text(text.replace('"status": "PASS"', '"status": "WAIVED"', 1))
    assert cli("verify", str(tmp_path / "lie.json")).returncode == 1
    (tmp_path / "half.json").write_text(text[: len(text) // 2])
    half = cli("verify", str(tmp_path / "half.json"))
    assert half.returncode == 2
    assert "not a whole conformance report" in half.stderr
    assert cli("verify", str(tmp_path / "none.json")).returncode == 2
