"""`pytest --pyargs xattn_conformance --xattn-backend NAME`, in a session of its own inside this one."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import Distribution
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from conformance.strangers import PROFILE, honest, install
from xattn_conformance.profiles import load as profiles
from xattn_conformance.result import decode
from xattn_conformance.running import session

from xattn.dispatch.registry import registry

pytest_plugins = ["pytester"]

FEW = "attention/causal+lse/float32/b?-q1?-k1?-*/needle"
SOFTCAP = "attention/knob.softcap/float32/*"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Goldens and admission have tests of their own, and take seconds. A session inside this one forgets what it
    imports, so the plugins are loaded before."""
    registry()
    monkeypatch.setattr(session, "verify", lambda **_: [])
    monkeypatch.setattr(profiles, "admit", lambda *_: [])


@pytest.fixture
def judge(pytester: pytest.Pytester) -> Callable[..., pytest.RunResult]:
    def run(*words: str, backend: str = "reference", case: str = FEW) -> pytest.RunResult:
        chosen = ["--xattn-backend", backend, "--xattn-case", case] if backend else []
        plugin = [] if known(pytester) else ["-p", "xattn_conformance.plugin"]
        return pytester.runpytest_inprocess(
            *plugin, "-p", "no:cacheprovider", "--pyargs", "xattn_conformance", *chosen, *words
        )

    return run


def known(pytester: pytest.Pytester) -> bool:
    """Whether the installation has the plugin's entry point."""
    return any(each.value == "xattn_conformance.plugin" for each in Distribution.from_name("xattn").entry_points)


@pytest.fixture
def acme(strangers: Path, load: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    def make(body: str) -> None:
        for name, value in install(strangers, "acme", body, PROFILE).items():
            monkeypatch.setenv(name, value)
        load(Distribution.at(strangers / "acme-1.0.dist-info").entry_points)

    return make


def test_one_test_for_each_case(judge: Callable[..., pytest.RunResult], tmp_path: Path) -> None:
    done = judge("-v", "--xattn-report", str(tmp_path))
    done.assert_outcomes(passed=3)
    done.stdout.fnmatch_lines(
        [
            "*::test_case[[]attention/causal+lse/float32/b1-q15-k15-h2-g2-d64-v64/needle[]] PASSED*",
            f"reference on cpu: No claim: chosen cases, '{FEW}'",
        ]
    )
    report = decode((tmp_path / "reference.json").read_bytes())
    assert [result.status for result in report.cases] == ["PASS"] * 3
    assert [bool(canary.caught_by) for canary in report.canaries] == [True, True]


def test_a_failure_shows_what_is_wrong_and_nothing_of_the_suite(
    judge: Callable[..., pytest.RunResult], acme: Callable[[str], None]
) -> None:
    acme(honest(after="found.out.mul_(1.01)"))
    done = judge(backend="acme")
    done.assert_outcomes(failed=3)
    assert done.ret == 1
    done.stdout.fnmatch_lines(
        ["FAIL: out.*is *, limit *", "out.zmax: *, limit 8", "worst: out[[]*", "reproduce: xattn-conformance run*"]
    )
    assert "under_pytest.py" not in done.stdout.str()
    assert "def test_case" not in done.stdout.str()


def test_unsupported_passes_with_a_property_and_alone_fails_the_session(
    judge: Callable[..., pytest.RunResult], acme: Callable[[str], None], tmp_path: Path
) -> None:
    acme(honest(more="def limits(self, request):\n    return [xattn.Reason('causal', request.causal, 'off')]"))
    done = judge(f"--junit-xml={tmp_path / 'junit.xml'}", backend="acme")
    done.assert_outcomes(passed=3)
    assert done.ret == 1
    done.stdout.fnmatch_lines(["acme on cpu: No claim*"])
    properties = [each.attrib for each in ElementTree.parse(tmp_path / "junit.xml").iter("property")]
    assert {"name": "xattn_status", "value": "UNSUPPORTED"} in properties


@pytest.mark.extended
def test_several_processes(judge: Callable[..., pytest.RunResult], acme: Callable[[str], None], tmp_path: Path) -> None:
    acme(honest(before="__import__('os').abort() if q.shape[1] == 16 else None"))
    done = judge("-n", "2", "--xattn-report", str(tmp_path), backend="acme")
    done.assert_outcomes(passed=2, failed=1)
    done.stdout.fnmatch_lines(["ERROR: the process that ran the case died of SIGABRT"])
    report = decode((tmp_path / "acme.json").read_bytes())
    assert [result.status for result in report.cases] == ["PASS", "ERROR", "PASS"]
    assert report.selection == FEW


def test_a_session_in_part_is_no_claim(judge: Callable[..., pytest.RunResult], tmp_path: Path) -> None:
    judge("-k", "q15", "--xattn-report", str(tmp_path)).assert_outcomes(passed=1, deselected=2)
    assert decode((tmp_path / "reference.json").read_bytes()).selection == f"{FEW}, in part"


@pytest.mark.extended
def test_two_backends_are_told_apart(judge: Callable[..., pytest.RunResult]) -> None:
    done = judge("-v", "--xattn-backend", "sdpa", case="attention/causal+lse/float32/b1-q15-*")
    done.assert_outcomes(passed=2)
    done.stdout.fnmatch_lines(["*test_case[[]reference:attention/*", "*test_case[[]sdpa:attention/*"])


def test_a_session_without_a_backend_is_wrong_usage(judge: Callable[..., pytest.RunResult]) -> None:
    done = judge(backend="")
    assert done.ret != 0
    assert "name a backend: --xattn-backend NAME" in done.stdout.str() + done.stderr.str()


def test_an_unknown_backend_is_wrong_usage(judge: Callable[..., pytest.RunResult]) -> None:
    done = judge(backend="nobody")
    assert done.ret == pytest.ExitCode.USAGE_ERROR
    assert "no backend or plugin is called 'nobody'" in done.stderr.str()


def test_goldens_that_do_not_verify_end_the_session(
    judge: Callable[..., pytest.RunResult], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(session, "verify", lambda ops: ["a file is missing"])
    done = judge("--xattn-case", "*", "--xattn-report", str(tmp_path))
    assert done.ret == 3
    assert "INVALID: the goldens do not verify: a file is missing" in done.stdout.str() + done.stderr.str()
    assert decode((tmp_path / "reference.json").read_bytes()).cases == ()


def test_the_plugin_is_light() -> None:
    """Every pytest session of an environment loads it."""
    source = Path(session.__file__).parents[1].joinpath("plugin.py").read_text()
    top = [line for line in source.splitlines() if line.startswith(("import ", "from "))]
    levels = "from xattn_conformance.levels import LEVELS"
    assert top == ["from __future__ import annotations", "from pathlib import Path", "import pytest", levels]
