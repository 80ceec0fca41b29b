"""When and on what a report says that it was made: dates in the future, and machines that contradict themselves."""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterator
from typing import Any

from xattn_conformance.profiles.schema import Profile
from xattn_conformance.result import Report

# How far a clock may be ahead of this one.
_SKEW = datetime.timedelta(minutes=5)

# What an architecture of a kind of device is called, and the field of torch's own version of it.
_ARCHITECTURES = {"cuda": "sm_", "rocm": "gfx"}
_VERSIONS = {"cuda": "cuda", "rocm": "hip"}


def contradictions(report: Report, profile: Profile, now: datetime.datetime) -> Iterator[str]:
    """A sentence each. What an environment does not name is not asked for: it may be of another version of the
    suite."""
    yield from _time(report, now)
    here: dict[str, Any] = report.environment
    device: dict[str, Any] = here["device"]
    kind = device["kind"]
    type_ = report.device.partition(":")[0]
    if (type_ == "cpu") != (kind == "cpu") or (type_ == "cuda" and kind not in _ARCHITECTURES):
        yield f"it ran on {report.device}, and its environment has a device of the kind {kind}"
    arch = device.get("arch")
    if kind in _ARCHITECTURES and arch is not None and not str(arch).startswith(_ARCHITECTURES[kind]):
        yield f"its device is of the kind {kind}, and of the architecture {arch}"
    if kind in _VERSIONS and _VERSIONS[kind] in here and here[_VERSIONS[kind]] is None:
        yield f"it ran on {kind}, with a torch that has none"
    if here.get("cuda") and here.get("hip"):
        yield f"its torch is built for CUDA {here['cuda']} and for ROCm {here['hip']}"
    built = re.search(r"\+(cpu|cu(\d+))$", str(here.get("torch", "")))
    if built and "cuda" in here and (here["cuda"] or "").replace(".", "") != (built[2] or ""):
        yield f"its torch is {here['torch']}, built for CUDA {here['cuda'] or 'none'}"
    if here.get("suite", report.suite) != report.suite:
        yield f"it is of suite {report.suite}, and its environment has suite {here['suite']}"
    if here.get("executor") and not profile.executor:
        yield "its environment describes an executor, and its profile names none"
    if report.provenance == "hardware" and "taken for" in device:
        yield f"it says that it ran on the vendor's hardware, on a device taken for {device['taken for']}"


def _time(report: Report, now: datetime.datetime) -> Iterator[str]:
    started = datetime.datetime.fromisoformat(report.started)
    if started.tzinfo is None:
        yield f"it started at {report.started}, in no time zone"
    elif started > now + _SKEW:
        yield f"it started at {report.started}, which is yet to come"
    if report.fresh and report.fresh != int(started.timestamp()):
        yield f"its fresh inputs are of seed {report.fresh}, and it started in second {int(started.timestamp())}"
    if (longest := max((result.seconds for result in report.cases), default=0.0)) > report.seconds:
        yield f"it took {report.seconds:g} s, and one of its cases {longest:g} s"
