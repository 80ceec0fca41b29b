"""`xattn-conformance`: exit codes, what is printed, what is written."""

from __future__ import annotations

import html
import os
import shlex
from collections.abc import Callable
from importlib.metadata import Distribution
from pathlib import Path
from typing import Any

import pytest
from conformance.strangers import PROFILE, honest, install
from safetensors import safe_open
from typer.testing import CliRunner
from xattn_conformance.cli import suite
from xattn_conformance.cli.app import app
from xattn_conformance.profiles import load as profiles
from xattn_conformance.result import SUITE, Canary, Report, decode
from xattn_conformance.running import session
from xattn_conformance.running.pool import Judging

FEW = "attention/causal+lse/float32/b?-q1?-k1?-*/needle"
ONE = "attention/causal+lse/float32/b1-q17-k17-h2-g2-d64-v64/needle"


Load = Callable[..., Any]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """What precedes every run and has tests of its own takes seconds: goldens and admission, here taken as passed."""
    monkeypatch.setattr(session, "verify", lambda **_: [])
    monkeypatch.setattr(profiles, "admit", lambda *_: [])
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture
def acme(strangers: Path, load: Load, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Install a stranger's plugin for this process and its workers."""

    def make(body: str, profile: str = PROFILE) -> None:
        for name, value in install(strangers, "acme", body, profile).items():
            monkeypatch.setenv(name, value)
        load(Distribution.at(strangers / "acme-1.0.dist-info").entry_points)

    return make


def cli(*words: str) -> Any:
    return CliRunner().invoke(app, words)


def run(*words: str, backend: str = "reference") -> Any:
    return cli("run", "--backend", backend, "--dtype", "float32", *words)


def test_a_run_that_passes(tmp_path: Path) -> None:
    done = run("--case", FEW, "--out", str(tmp_path))
    assert done.exit_code == 0, done.stdout + done.stderr
    assert "3 PASS" in done.stdout
    assert "Canary zero: caught by" in done.stdout
    assert f"No claim: chosen cases, '{FEW}'" in done.stdout
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
    assert report.environment["suite"] == SUITE
    assert len(report.goldens) == 64
    assert str(Path.home()) not in str(report.environment)
    assert os.uname().nodename not in str(report.environment)


def test_failures_are_printed_with_their_command_which_shows_them_again(acme: Callable[..., None]) -> None:
    wrong = honest(after="found.out.mul_(1.01)")
    acme(wrong)
    done = run("--case", FEW, backend="acme")
    assert done.exit_code == 1
    assert done.stderr.count("FAIL attention/") == 3
    commands = [line.strip() for line in done.stderr.splitlines() if line.strip().startswith("xattn-conformance run")]
    assert len(commands) == 3
    again = cli(*shlex.split(commands[0])[1:])
    assert again.exit_code == 1
    assert "1 FAIL" in again.stdout


def test_crashes_hangs_and_lies_in_one_run(acme: Callable[..., None], tmp_path: Path) -> None:
    before = "import os, time; n = q.shape[1]; os.abort() if n == 15 else time.sleep(600) if n == 16 else None"
    acme(honest(before=before))
    done = run("--case", FEW, "--timeout", "2", "--out", str(tmp_path), backend="acme")
    assert done.exit_code == 1
    report = decode((tmp_path / "acme.json").read_bytes())
    assert [result.status for result in report.cases] == ["ERROR", "ERROR", "PASS"]
    assert report.cases[0].message == "the process that ran the case died of SIGABRT"
    # A worker that has judged nothing yet is given three times as long.
    assert report.cases[1].message == "the process that ran the case gave no answer within 6 s"


def test_a_profile_that_was_given_is_in_the_command_without_its_folder(
    acme: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    acme(honest(after="found.out.mul_(1.01)"))
    (tmp_path / "mine.toml").write_text(PROFILE.format("acme"))
    monkeypatch.chdir(tmp_path)
    for given in ("mine.toml", str(tmp_path / "mine.toml")):
        done = run("--case", ONE, "--profile", given, backend="acme")
        assert f"--profile mine.toml --case {ONE}" in done.stderr


def test_nothing_executed_is_a_failure(acme: Callable[..., None]) -> None:
    declines = "def limits(self, request):\n    return [xattn.Reason('causal', True, 'off')]"
    acme(honest(more=declines))
    done = run("--case", FEW, backend="acme")
    assert done.exit_code == 1
    assert "3 UNSUPPORTED" in done.stdout
    assert "Nothing was executed" in done.stdout


def test_a_backend_without_a_profile_is_held_to_the_canonical_arithmetic(
    acme: Callable[..., None], tmp_path: Path
) -> None:
    acme(honest(), "")
    done = run("--case", ONE, "--out", str(tmp_path), backend="acme")
    assert done.exit_code == 0, done.stdout + done.stderr
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
    assert done.exit_code == 3
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
        (("--backend", "reference", "--case", ONE, "--dump", "nodir/x"), "a dump is a file in a folder that is there"),
        (("--backend", "reference", "--case", ONE, "--dump", "."), "a dump is a file in a folder that is there"),
        (("--backend", "reference", "--case", ONE, "--out", "file"), "--out file: File exists"),
        (("--backend", "reference", "--case", ONE, "--out", "file/b"), "--out file/b: Not a directory"),
        ((), "backend"),
    ],
)
def test_wrong_usage(words: tuple[str, ...], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    done = cli("run", *words)
    assert done.exit_code == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_disabled_backend_is_said_at_the_start(load: Load) -> None:
    load([], disabled=["reference"])
    done = run("--case", ONE)
    assert done.exit_code == 2
    assert "disabled by XATTN_DISABLE=reference" in done.stderr


def test_a_dump_holds_the_case(tmp_path: Path) -> None:
    done = run("--case", ONE, "--dump", str(tmp_path / "one.safetensors"))
    assert done.exit_code == 0
    with safe_open(tmp_path / "one.safetensors", "np") as dump:
        shapes = {name: dump.get_tensor(name).shape for name in dump.keys()}  # noqa: SIM118 - no mapping
        out, golden = dump.get_tensor("outputs.out"), dump.get_tensor("golden.out")
    assert set(shapes) == {
        *(f"inputs.{name}" for name in "qkv"),
        *(f"{what}.{name}" for what in ("outputs", "golden", "sigma") for name in ("out", "lse")),
    }
    assert shapes["inputs.q"] == shapes["outputs.out"] == (1, 17, 2, 64)
    assert abs(out.transpose(0, 2, 1, 3) - golden).max() < 1e-4


def test_goldens_that_do_not_verify_make_the_run_invalid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (session, suite):
        monkeypatch.setattr(module, "verify", lambda **_: ["float32.safetensors is missing"])
    done = run("--out", str(tmp_path))
    assert done.exit_code == 3
    assert "INVALID: the goldens do not verify: float32.safetensors is missing" in done.stdout
    assert decode((tmp_path / "reference.json").read_bytes()).cases == ()
    assert cli("verify-goldens").exit_code == 3


def test_chosen_cases_claim_nothing_so_nothing_is_proved_for_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: Any, **__: Any) -> list[str]:
        raise AssertionError("takes seconds")

    monkeypatch.setattr(session, "verify", refused)
    monkeypatch.setattr(profiles, "admit", refused)
    done = run("--case", ONE, "--out", str(tmp_path))
    assert done.exit_code == 0, done.stdout + done.stderr
    assert f"No claim: chosen cases, '{ONE}'" in done.stdout
    assert f"No claim: chosen cases, '{ONE}'" in html.unescape((tmp_path / "reference.html").read_text())
    with pytest.raises(AssertionError, match="takes seconds"):
        session.run("reference", dtypes=["float32"])


def test_a_canary_that_is_not_caught_makes_the_run_invalid(monkeypatch: pytest.MonkeyPatch) -> None:
    loose = Canary(name="zero", case="any", caught_by="", value=None, limit=0.0)
    monkeypatch.setattr(Judging, "canaries", lambda *_: (loose,))
    done = run("--case", ONE)
    assert done.exit_code == 3
    assert "INVALID: wrong kernels pass the comparison: zero" in done.stdout
    assert "Canary zero: NOT CAUGHT" in done.stdout


def test_list_and_reports(tmp_path: Path) -> None:
    listed = cli("list", "--level", "core", "--case", FEW)
    assert len(listed.stdout.splitlines()) == 3
    nothing = cli("list", "--case", "no such case")
    assert nothing.exit_code == 2
    assert "no case of level full matches" in nothing.stderr
    assert run("--case", FEW, "--out", str(tmp_path)).exit_code == 0
    report = str(tmp_path / "reference.json")
    verified = cli("verify", report)
    assert verified.exit_code == 0, verified.stderr
    assert cli("compare", report, report).exit_code == 0
    assert cli("html", report, "--out", str(tmp_path / "page.html")).exit_code == 0
    assert cli("junit", report, "--out", str(tmp_path / "j.xml")).exit_code == 0
    nowhere = cli("html", report, "--out", str(tmp_path / "nowhere" / "page.html"))
    assert nowhere.exit_code == 2
    assert "No such file or directory" in nowhere.stderr
    assert (tmp_path / "page.html").read_text() == (tmp_path / "reference.html").read_text()
    text = (tmp_path / "reference.json").read_text()
    (tmp_path / "lie.json").write_text(text.replace('"status":"PASS"', '"status":"WAIVED"', 1))
    assert cli("verify", str(tmp_path / "lie.json")).exit_code == 1
    (tmp_path / "half.json").write_text(text[: len(text) // 2])
    half = cli("verify", str(tmp_path / "half.json"))
    assert half.exit_code == 2
    assert "not a whole conformance report" in half.stderr
    assert cli("verify", str(tmp_path / "none.json")).exit_code == 2
