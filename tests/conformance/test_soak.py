"""Races that come once in many calls: `--soak`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from conformance.strangers import PROFILE, honest, one
from support import Load, backend_source, stranger
from xattn_conformance.profiles.schema import parse
from xattn_conformance.reports import wanted
from xattn_conformance.result import CaseResult
from xattn_conformance.running import target
from xattn_conformance.running.judge import judge

CASE = msgspec.structs.replace(one("attention/causal+lse/float32/b?-q1?-k1?-*/needle"), variations=("repeat",))
# Wrong in the thirtieth call, and never before or after.
THIRTIETH = "Stranger.calls = getattr(Stranger, 'calls', 0) + 1; {} if Stranger.calls == 30 else None"
WRONG = THIRTIETH.format("found.out[0, 0, 0, 0].add_(1)")
OTHER_BITS = THIRTIETH.format("found.out[0, 0, 0, 0].mul_(1 + 2e-7)")
NO_PROMISE = PROFILE + "[bitwise]\nrepeat = false\npoison = false\n"


@pytest.fixture
def soaked(strangers: Path, load: Load) -> Callable[..., CaseResult]:
    def make(after: str, times: int, profile: str = PROFILE) -> CaseResult:
        name = f"acme{times}"
        load(stranger(strangers, name, backend_source(name, 0.0, body=honest(after=after))))
        return judge(CASE, target.make(name, "cpu", parse(profile.format(name)), soak=times))

    return make


@pytest.mark.parametrize("profile", [PROFILE, NO_PROMISE], ids=["bits", "compared"])
def test_a_rare_race_passes_a_few_calls_and_fails_many(profile: str, soaked: Callable[..., CaseResult]) -> None:
    assert soaked(WRONG, 0, profile).status == "PASS"
    result = soaked(WRONG, 40, profile)
    assert result.status == "FAIL"
    bad = {check.name for check in result.checks if not check.ok}
    assert all(name.startswith("soak") for name in bad), bad
    assert "out[0, 0, 0, 0]" in result.message
    assert "--soak 40" in result.reproduce


def test_bits_are_held_to_only_where_they_are_promised(soaked: Callable[..., CaseResult]) -> None:
    assert soaked(OTHER_BITS, 39, NO_PROMISE).status == "PASS"
    result = soaked(OTHER_BITS, 40)
    assert result.status == "FAIL"
    assert "of 40 further calls 1 gave other bits, first in call 28: out[0, 0, 0, 0]: " in result.message


@pytest.mark.parametrize("profile", [PROFILE, NO_PROMISE], ids=["bits", "compared"])
def test_a_report_of_a_soak_must_have_it(profile: str, soaked: Callable[..., CaseResult]) -> None:
    whole, without = soaked("pass", 3, profile), soaked("pass", 0, profile)
    assert whole.status == "PASS", whole.message
    assert list(wanted.incomplete(whole, False, True, lambda _: True)) == []
    assert list(wanted.incomplete(without, False, False, lambda _: True)) == []
    assert any("soak:out was not compared" in said for said in wanted.incomplete(without, False, True, lambda _: True))
