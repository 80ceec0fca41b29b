"""What a backend may do to the process that judges it: each attack passed once, and costs its case or the run now."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from conformance.strangers import PROFILE, honest, install
from xattn_conformance.case import Case
from xattn_conformance.result import CaseResult
from xattn_conformance.running import pool, selection
from xattn_conformance.running.pool import GivenUpError, Judging, Pool
from xattn_conformance.running.protocol import Start

# Small cases of three lengths.
PATTERN = "attention/causal+lse/float32/b?-q1?-k1?-*/needle"


def cases() -> list[Case]:
    return sorted(selection.select("core", ["float32"], PATTERN), key=lambda case: case.shape["seqlen_q"])


@pytest.fixture
def judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The results of a stranger's backend in the cases, in order, from one worker."""

    def run(before: str = "pass", after: str = "pass", memory: int | None = None) -> list[CaseResult]:
        for name, value in install(tmp_path / "strangers", "acme", honest(before, after)).items():
            monkeypatch.setenv(name, value)
        start = Start("acme", "cpu", PROFILE.format("acme"), 1, memory=memory)
        with Pool([Judging(start, timeout=10)]) as found:
            results = {result.id: result for result in found.judge(cases())}
        return [results[case.id] for case in cases()]

    return run


def in_second(what: str) -> str:
    """Do something in the second of the cases alone."""
    return f"{what} if q.shape[1] == {cases()[1].shape['seqlen_q']} else None"


def statuses(results: list[CaseResult]) -> list[str]:
    return [result.status for result in results]


def test_a_forked_child_answers_nothing(judged: Any) -> None:
    """The child comes back out of the call as its parent does. Its answers stood first in the pipe, so that every case
    got that of the case before: the wrong second one passed, and the third failed."""
    spoil = "found.out.mul_(2) if q.shape[1] == 16 else None"
    results = judged(before="import os; os.fork()", after=spoil)
    assert statuses(results) == ["PASS", "FAIL", "PASS"]
    assert [result.case for result in results] == cases()


# Every descriptor but the first three, the worker's own among them.
EVERYWHERE = "[os.write(fd, {}) for fd in range(3, 64) if os.path.exists(f'/proc/self/fd/{{fd}}') and writes(fd)]"
WRITES = "import os, fcntl; writes = lambda fd: fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_WRONLY; "


@pytest.mark.parametrize("rubbish", [r"b'\xff\xfe\n'", "b'half a line'"])
def test_rubbish_on_the_workers_descriptors_is_an_error_of_its_case(rubbish: str, judged: Any) -> None:
    results = judged(before=WRITES + in_second(EVERYWHERE.format(rubbish)))
    assert statuses(results) == ["PASS", "ERROR", "PASS"]
    assert results[1].message.startswith("the process that ran the case answered with something else: '")


def test_an_answer_to_another_request_is_an_error_of_the_case(judged: Any) -> None:
    """What stood in the pipe was taken for the answer to whatever came next."""
    passed = r"""b'{"number":2,"message":{"type":"Caught","canaries":[]}}\n'"""
    results = judged(before=WRITES + in_second(EVERYWHERE.format(passed)))
    assert statuses(results) == ["PASS", "ERROR", "PASS"]


def test_closed_descriptors_are_an_error_of_the_case(judged: Any) -> None:
    results = judged(before="import os; " + in_second("os.closerange(3, 64)"))
    assert statuses(results) == ["PASS", "ERROR", "PASS"]


def test_memory_past_the_limit_is_an_error_of_the_case(judged: Any) -> None:
    results = judged(before=in_second("torch.empty(8 << 30, dtype=torch.uint8)"), memory=4 << 30)
    assert statuses(results) == ["PASS", "ERROR", "PASS"]
    assert "allocate" in results[1].message


PATCHES = {
    "the comparison": "import xattn_conformance.running.judge as m; r = m.compare; "
    "m.compare = lambda e, g: r(e, {n: x.value for n, x in e.items()})",
    "its checks": "import xattn_conformance.tolerance.compare as m; m._checks = lambda *_: []",
    "the limits": "import xattn_conformance.tolerance.compare as m; m.limit = lambda *_: 1e9",
    "the waivers": "import xattn_conformance.profiles.waivers as m; m.status_of = lambda *_: 'PASS'",
}


@pytest.mark.parametrize("name", PATCHES)
def test_a_process_whose_comparison_was_patched_passes_nothing(name: str, judged: Any) -> None:
    results = judged(before=PATCHES[name], after="found.out.mul_(2)")
    assert "PASS" not in statuses(results)
    assert any("no longer fails a kernel that answers zeros" in result.message for result in results)


@pytest.mark.parametrize(
    ("before", "limit", "said"),
    [
        ("__import__('time').sleep(600)", "HUNG_IN_A_ROW", "2 processes in a row gave no answer in time; the last"),
        ("__import__('os')._exit(9)", "LOST_IN_A_ROW", "2 processes in a row gave no answer; the last"),
    ],
)
def test_a_backend_that_only_hangs_or_dies_ends_the_run(
    before: str, limit: str, said: str, judged: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, limit, 2)
    monkeypatch.setattr(pool, "_FIRST", 0.3)
    began = time.monotonic()
    with pytest.raises(GivenUpError, match=f"stopped: {said}") as caught:
        judged(before=before)
    assert caught.value.lost.status == "ERROR"
    assert time.monotonic() - began < 30
