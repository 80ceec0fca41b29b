"""What contradicts itself in a report whose every status follows: counts, histograms, worst elements, reasons, dates
and environments."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Callable
from typing import Any

import pytest
from conformance.reporting import PROFILE, REASON, changed, first, small_report, with_check
from conformance.test_report_verify import SUITE_1, here
from msgspec.structs import replace
from xattn_conformance.ops.registry import OPS
from xattn_conformance.reports.suite import installed
from xattn_conformance.reports.verify import verify
from xattn_conformance.result import SUITE, CaseResult, Report, Worst, decode, encode
from xattn_conformance.tolerance import limits
from xattn_conformance.tolerance.arithmetic import CANONICAL

SMALL = small_report()
PASSED, DECLINED = first(SMALL, "PASS"), first(SMALL, "UNSUPPORTED")
NOW = datetime.datetime(2026, 5, 2, 12, tzinfo=datetime.timezone.utc)
ZMAX = next(check.value for check in PASSED.checks if check.name == "out.zmax")


def passed(**changes: Any) -> Report:
    return changed(SMALL, PASSED.id, **changes)


def declined(**reason: str) -> Report:
    return changed(SMALL, DECLINED.id, reasons=({**REASON, **reason},))


def environment(**changes: Any) -> Report:
    return replace(SMALL, environment=here(**changes))


def worst(tensor: str = "out", sigmas: float = 1.0) -> Worst:
    assert ZMAX is not None
    return Worst(tensor=tensor, index=(0, 0, 0, 0), got=1.0 + sigmas * ZMAX * 0.001, want=1.0, sigma=0.001)


DEVICE = SMALL.environment["device"]
FOUND: dict[str, tuple[Callable[[], Report], str]] = {
    "a histogram of smaller errors": (lambda: passed(histogram=(9,) + (0,) * 20), "its histogram ends in bin 0, and"),
    "a histogram of larger errors": (lambda: passed(histogram=(1,) * 20 + (0,)), "its histogram ends in bin 19, and"),
    "a worst element that is better": (lambda: passed(worst=worst(sigmas=0.5)), "its worst element is "),
    "a worst element of another tensor": (lambda: passed(worst=worst("lse")), "its worst element is of lse"),
    "a reason about what is not used": (
        lambda: declined(code="window", got="(15, 0)"),
        "UNSUPPORTED for window=(15, 0), of which the case has nothing",
    ),
    "a reason about another dtype": (
        lambda: declined(code="dtype", got="float64"),
        "UNSUPPORTED for dtype=float64, of which the case has nothing",
    ),
    "a start to come": (lambda: replace(SMALL, started="2026-05-02T13:00:00+00:00"), "which is yet to come"),
    "a start in no time zone": (lambda: replace(SMALL, started="2026-05-02T09:30:00"), "in no time zone"),
    "a run shorter than a case": (lambda: replace(SMALL, seconds=1e-3), "it took 0.001 s, and one of its cases"),
    "a seed that was chosen": (lambda: replace(SMALL, fresh=1), "its fresh inputs are of seed 1, and it started in"),
    "a device of another kind": (
        lambda: replace(SMALL, device="cpu"),
        "it ran on cpu, and its environment has a device of the kind cuda",
    ),
    "another vendor's architecture": (
        lambda: environment(device={**DEVICE, "arch": "gfx942"}),
        "its device is of the kind cuda, and of the architecture gfx942",
    ),
    "a torch without CUDA": (lambda: environment(torch="2.13.0", cuda=None), "it ran on cuda, with a torch that has"),
    "a torch of two vendors": (lambda: environment(hip="7.0"), "its torch is built for CUDA 13.0 and for ROCm 7.0"),
    "a torch of another CUDA": (lambda: environment(cuda="12.8"), "its torch is 2.13.0+cu130, built for CUDA 12.8"),
    "another suite": (lambda: environment(suite="1.0"), f"it is of suite {SUITE}, and its environment has suite 1.0"),
    "an executor that is not named": (
        lambda: environment(executor={"name": "emulation"}),
        "its environment describes an executor, and its profile names none",
    ),
    "hardware that was taken for another": (
        lambda: environment(device={**DEVICE, "taken for": "rocm gfx942"}),
        "on a device taken for rocm gfx942",
    ),
    "untested features kept back": (
        lambda: replace(SMALL, declared={"attention": ("softcap", "window")}),
        "it says that it left nothing untested, and that is {'attention': ('softcap',)}",
    ),
    "a variation left out that the case has not": (
        lambda: passed(left_out={"graph": ("seqlens_k",)}),
        "the variation graph is left out, and the case has none such",
    ),
}


@pytest.mark.parametrize("what", FOUND)
def test_verification_finds(what: str) -> None:
    make, problem = FOUND[what]
    found = verify(make(), SUITE_1, NOW)
    assert any(problem in line for line in found), found


HONEST: dict[str, Callable[[], Report]] = {
    "as it is": lambda: SMALL,
    "its worst element": lambda: passed(worst=worst()),
    "a size of the case": lambda: declined(code="headdim_v", got=str(DECLINED.case.shape["headdim_v"])),
    "what the case does not ask for and the backend wants": lambda: declined(code="causal", got="False", want="True"),
    "a reason of the vendor's own": lambda: declined(code="driver", got="535", want="550"),
    "what was not tested": lambda: replace(
        SMALL, declared={"attention": ("softcap", "window")}, untested={"attention": ("softcap",)}
    ),
}


@pytest.mark.parametrize("what", HONEST)
def test_verification_takes(what: str) -> None:
    assert verify(HONEST[what](), SUITE_1, NOW) == []


def varied(name: str, message: str = "", **fields: Any) -> list[str]:
    """What is said of a case with one variation that was left out."""
    case = replace(PASSED.case, variations=(name,))
    result = replace(PASSED, case=case, message=message, **fields)
    suite = dataclasses.replace(SUITE_1, select=lambda *_: [case])
    return verify(replace(SMALL, cases=(result,), selection=result.id), suite, NOW)


def test_a_variation_is_left_out_for_a_reason() -> None:
    without = [f"{PASSED.id}: the variation padding is left out without a reason"]
    assert varied("padding", left_out={"padding": ("seqlens_k",)}) == []
    assert varied("padding", left_out={"padding": ()}) == without
    assert varied("padding", left_out={"padding": (" ",)}) == without
    # As suites before 1.2 wrote it.
    assert varied("padding", "the variation padding is left out: declined for seqlens_k", left_out=("padding",)) == []
    assert varied("padding", left_out=("padding",)) == without


def test_a_variation_that_the_device_has_is_not_left_out_for_it() -> None:
    assert varied("graph", left_out={"graph": ("device",)}) == [
        f"{PASSED.id}: the variation graph is left out for device, which cuda:0 gives no cause for"
    ]


def test_a_count_is_that_of_the_case() -> None:
    def limit(metric: str, count: float) -> float:
        return limits.limit(metric, count) if metric == "bias" else SUITE_1.limit(metric, count)

    checks = tuple(
        replace(check, value=0.01, limit=limit("bias", check.count)) if check.name.endswith(".bias") else check
        for check in PASSED.checks
    )
    own = replace(PASSED, checks=checks)
    suite = dataclasses.replace(SUITE_1, limit=limit, select=lambda *_: [PASSED.case])

    def said(result: CaseResult) -> list[str]:
        return verify(replace(SMALL, cases=(result,), selection=result.id), suite, NOW)

    assert said(own) == []
    few = with_check(own, "out.bias", value=4.0, count=1.0, limit=limit("bias", 1.0))
    assert said(replace(own, checks=few)) == [
        f"{PASSED.id}: out.bias was taken over 1 samples, and the heads of the case are 2048"
    ]
    # One so small that it passes over any number of samples is not worth a golden.
    little = with_check(own, "out.bias", value=0.01, count=1.0, limit=limit("bias", 1.0))
    assert said(replace(own, checks=little)) == []


def test_the_counts_of_a_case_are_those_of_its_golden() -> None:
    (plain,) = installed().select("core", ("float32",), "attention/plain/*/b2-q65-k65-h3-g3-d64-v64/normal")
    (equal,) = installed().select("core", ("float32",), "attention/lse/*/b2-q17-k65-*/needle")
    assert installed().counts(plain, CANONICAL, "out") == {65.0}
    # Rows that meet one needle are equal, and count once.
    assert max(installed().counts(equal, CANONICAL, "out")) < 17
    assert installed().counts(plain, CANONICAL, "probe") == ()
    (knob, *_) = OPS["attention"].knob_cases()
    assert installed().counts(knob, CANONICAL, "out")


def test_a_profile_with_an_executor_may_have_an_environment_of_it() -> None:
    profile = PROFILE.replace("[arithmetic]", 'executor = "nowhere.to.be.found:run"\n[arithmetic]')
    report = replace(environment(executor={"name": "emulation"}), profile=profile)
    assert verify(report, SUITE_1, NOW) == []


@pytest.mark.parametrize("cut", [0, 1, 1000, -2])
def test_a_truncated_report_is_a_plain_message(cut: int) -> None:
    with pytest.raises(ValueError, match="not a whole conformance report"):
        decode(encode(SMALL)[:cut])
