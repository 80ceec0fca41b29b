"""Reports that no run made, with everything in them that a run can leave behind, for the tests of what is derived."""

from __future__ import annotations

import math
import random
from itertools import product
from typing import Any

from msgspec.structs import replace
from xattn_conformance.case import DTYPES, Case
from xattn_conformance.levels import Level
from xattn_conformance.result import (
    HISTOGRAM_BINS,
    HISTOGRAM_STEP,
    SCHEMA,
    SUITE,
    Canary,
    CaseResult,
    Check,
    Heat,
    Report,
    Status,
    Worst,
)

GOLDENS = "5d41402abc4b2a76b9719d911017c5925d41402abc4b2a76b9719d911017c592"
LIMITS = {"zmax": 8.0, "zrow": 4.0, "gain": 6.0, "zhead": 1.5, "bias": 5.0}
WAIVED_LIMIT = 5.2
REASON = {"code": "softcap", "got": "50.0", "want": "off", "hint": "Call it without softcap."}
CRASH = "RuntimeError: </script> & <b>"
TRACEBACK = f'Traceback (most recent call last):\n  File "acme/kernel.py", line 7, in launch\n{CRASH}'
# What a title asks for: (title, options, features, level).
TITLES: tuple[tuple[str, dict[str, Any], tuple[str, ...], Level], ...] = (
    ("plain", {}, ("plain",), "core"),
    ("causal+lse", {"causal": True, "return_lse": True}, ("causal", "bottom_right", "return_lse"), "core"),
    ("window=15:0", {"window": (15, 0)}, ("window",), "extended"),
    ("softcap=50", {"softcap": 50.0}, ("softcap",), "extended"),
    ("sinks=log", {"sinks": "log"}, ("sinks", "gqa"), "extended"),
)


def limit(metric: str, count: float) -> float:
    """The limits of the suite that these reports are of."""
    return LIMITS.get(metric, 0.0)


def make_case(title: int, dtype: str, family: str, seqlen: int, **changes: Any) -> Case:
    name, options, features, level = TITLES[title]
    sizes = ("batch", "seqlen_q", "seqlen_k", "nheads", "nheads_k", "headdim", "headdim_v")
    fields: dict[str, Any] = {
        "op": "attention",
        "title": name,
        "level": level,
        "dtype": dtype,
        "family": family,
        "shape": dict(zip(sizes, (2, seqlen, seqlen + 64, 4, 2, 64, 64), strict=True)),
        "options": options,
        "features": features,
    }
    return Case(**{**fields, **changes})


# The one case of the small report that is waived, and the profile that waives it.
WAIVED = make_case(1, "float16", "needle", 129).id
PROFILE = f"""
schema = 1
backend = "acme"
hardware = ["cuda"]

[arithmetic]
exp_bits = 20

[[waiver]]
id = "XW-1"
cases = ["{WAIVED}"]
check = "out.zrow"
observed = 4.9
limit = {WAIVED_LIMIT}
device = "cuda"
kernel = "acme 1.4.2"
effect = "The last row of a tile is rounded twice."
upstream = "https://git.acme.example/kernels/issues/7"
filed = 2026-04-20
expires = 2026-07-01
owner = "kernels at acme"
"""


def make_checks(rng: random.Random, case: Case, worst: float = 0.6) -> list[Check]:
    """Checks as a comparison leaves them; `worst` is the largest value relative to its limit."""
    tensors = ["out"] + ["lse"] * ("return_lse" in case.features) + [f"d{name}" for name in "qkv" if case.grads]
    rules = ("missing", "shape", "dtype", "device", "finite", "exact")
    checks = [Check(name=f"{tensor}.{rule}", value=0.0, limit=0.0) for tensor, rule in product(tensors, rules)]
    checks += [Check(name=name, value=0.0, limit=0.0) for name in ("out.contiguous", "inputs.written", "results.kept")]
    checks += [Check(name=f"{variation}.bits", value=0.0, limit=0.0) for variation in case.variations]
    checks += [
        Check(name=f"{tensor}.{metric}", value=limits * worst * rng.uniform(0.3, 1.0), limit=limits, count=2048)
        for tensor, (metric, limits) in product(tensors, LIMITS.items())
        if tensor != "lse" or metric not in ("zrow", "gain")
    ]
    return checks


def make_heat(rng: random.Random, case: Case, hot: float | None = 0.4) -> Heat:
    """A quiet map with one hot cell; None makes it a cell that is not finite."""
    queries, heads = case.shape["seqlen_q"], case.shape["batch"] * case.shape["nheads"]
    lines = min(queries, 64)
    rows = tuple(queries * line // lines for line in range(lines))
    cells = [[rng.uniform(0.15, 0.35) for _ in range(heads)] for _ in rows]
    grid: list[list[float | None]] = [list(line) for line in cells]
    grid[lines // 3][heads // 2] = hot
    return Heat(rows=rows, heads=tuple(range(heads)), cells=tuple(map(tuple, grid)))


def passing(rng: random.Random, case: Case) -> CaseResult:
    checks = make_checks(rng, case)
    (largest,) = [check.value for check in checks if check.name == "out.zmax"]
    assert largest is not None
    top = int(largest / LIMITS["zmax"] / HISTOGRAM_STEP)
    counts = [1 + int(6000 * math.exp(-0.5 * (bin_ / 3) ** 2)) for bin_ in range(top + 1)]
    return CaseResult(
        id=case.id,
        case=case,
        status="PASS",
        provenance="hardware",
        checks=tuple(checks),
        kernel="acme_fwd_128x64 (1.4.2)",
        heat=make_heat(rng, case),
        histogram=(*counts, *(0,) * (HISTOGRAM_BINS - len(counts))),
        inputs=f"{rng.getrandbits(256):064x}",
        output=f"{rng.getrandbits(256):064x}",
        seconds=rng.uniform(0.004, 0.08),
        reproduce=f"xattn-conformance run --backend acme --device cuda --case '{case.id}'",
    )


def with_check(result: CaseResult, name: str, **changes: Any) -> tuple[Check, ...]:
    """The checks with one of them changed."""
    return tuple(replace(check, **changes) if check.name == name else check for check in result.checks)


def become(rng: random.Random, result: CaseResult, status: Status) -> CaseResult:
    """A passing result, had it gone otherwise."""
    if status == "FAIL":
        return replace(
            result,
            status="FAIL",
            checks=with_check(result, "out.zrow", value=37.25),
            message="out.zrow is 37.25, over its limit of 4",
            worst=Worst(tensor="out", index=(1, 3, 16, 5), got=0.53125, want=0.498046875, sigma=0.00091),
            heat=make_heat(rng, result.case, hot=9.3125),
            histogram=(*result.histogram[:-1], 64),
        )
    if status == "WAIVED":
        checks = with_check(result, "out.zrow", value=4.9, limit=WAIVED_LIMIT, waiver="XW-1")
        return replace(result, status="WAIVED", checks=checks, message="out.zrow is 4.9; waived by XW-1")
    empty: dict[str, Any] = {"checks": (), "heat": None, "histogram": (), "output": "", "kernel": ""}
    if status == "UNSUPPORTED":
        return replace(result, status="UNSUPPORTED", reasons=(REASON,), message="declined as declared", **empty)
    if status == "ERROR":
        return replace(result, status="ERROR", message=CRASH, detail=TRACEBACK, **empty)
    if status == "INVALID":
        return replace(result, status="INVALID", message="the inputs are not those of the manifest", **empty)
    return result


def make_report(results: list[CaseResult], **changes: Any) -> Report:
    fields: dict[str, Any] = {
        "schema": SCHEMA,
        "suite": SUITE,
        "backend": "acme",
        "device": "cuda:0",
        "level": "extended",
        "ops": ("attention",),
        "dtypes": DTYPES,
        "selection": "*",
        "started": "2026-05-02T09:30:00+00:00",
        "seconds": 41.5,
        "provenance": "hardware",
        "goldens": GOLDENS,
        "invalid": "",
        "environment": {
            "suite": SUITE,
            "commit": "0f3c2a9",
            "dirty": False,
            "torch": "2.13.0+cu130",
            "cuda": "13.0",
            "hip": None,
            "python": "3.11.9",
            "device": {"kind": "cuda", "name": "ACME X1", "arch": "sm_90"},
            "variables": {"XATTN_DISABLE": "", "CUDA_VISIBLE_DEVICES": "0"},
        },
        "profile": PROFILE,
        "profile_source": "xattn_acme/acme.profile.toml",
        "canaries": (
            Canary(name="zero", case=results[0].id, caught_by="out.zmax", value=311.5, limit=8.0),
            Canary(name="window + 1", case=results[0].id, caught_by="out.zrow", value=88.0, limit=4.0),
        ),
        "cases": tuple(results),
    }
    return Report(**{**fields, **changes})


def small_report(**changes: Any) -> Report:
    """60 cases: 20 a dtype, 12 of them core. bfloat16 has 2 FAIL and 1 ERROR, float16 1 WAIVED; all decline softcap."""
    rng = random.Random(7)
    grid = product(DTYPES, range(len(TITLES)), (("normal", 129), ("needle", 129), ("outlier", 257), ("poison", 17)))
    results = []
    for dtype, title, (family, seqlen) in grid:
        core = {"level": "core"} if title == 4 else {}
        result = passing(rng, make_case(title, dtype, family, seqlen, **core))
        results.append(become(rng, result, _status(dtype, title, family)))
    return make_report(results, **changes)


def _status(dtype: str, title: int, family: str) -> Status:
    if title == 3:
        return "UNSUPPORTED"
    if dtype == "bfloat16" and title == 2 and family in ("needle", "poison"):
        return "FAIL"
    if dtype == "bfloat16" and title == 4 and family == "outlier":
        return "ERROR"
    if dtype == "float16" and title == 1 and family == "needle":
        return "WAIVED"
    return "PASS"


def large_report(count: int = 2500) -> Report:
    """As a Full run of a large backend leaves it: one case in a hundred fails, one in nine is declined."""
    rng = random.Random(11)
    results = []
    for index in range(count):
        title, dtype = index % len(TITLES), DTYPES[index % 3]
        case = make_case(title, dtype, ("normal", "needle", "poison")[index % 7 % 3], 65 + index, grads=("qkv", "lse"))
        result = passing(rng, case)
        status: Status = "FAIL" if index % 100 == 0 else "UNSUPPORTED" if index % 9 == 0 else "PASS"
        results.append(become(rng, result, status))
    return make_report(results, level="full")


def changed(report: Report, id_: str, **changes: Any) -> Report:
    """The report with one of its cases changed."""
    return replace(report, cases=tuple(replace(r, **changes) if r.id == id_ else r for r in report.cases))


def first(report: Report, status: Status) -> CaseResult:
    return next(result for result in report.cases if result.status == status)
