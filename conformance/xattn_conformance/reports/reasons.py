"""Whether what a backend declined, it declined for something that was asked of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache

from xattn_conformance.levels import LEVELS
from xattn_conformance.ops import manners
from xattn_conformance.ops.registry import OPS
from xattn_conformance.result import CaseResult
from xattn_conformance.running.reach import used


def unfounded(result: CaseResult) -> Iterator[str]:
    """Of a case that was declined."""
    if not result.reasons:
        yield "UNSUPPORTED without a reason"
    for reason in result.reasons:
        if blank := [part for part in ("code", "got", "want") if not reason.get(part, "").strip()]:
            yield f"UNSUPPORTED for a reason without {', '.join(blank)}"
        elif not _about(result, reason):
            yield f"UNSUPPORTED for {reason['code']}={reason['got']}, of which the case has nothing"


def _about(result: CaseResult, reason: Mapping[str, str]) -> bool:
    """A reason about a feature must be about one that the case uses, or that it does not use and the backend wants. Of
    a size and of the dtype it must say what the case has."""
    case, code, got = result.case, reason["code"], reason["got"]
    if code == "dtype":
        return case.dtype in got
    if code in OPS[case.op].words(case) or code not in _vocabulary(case.op):
        return True
    return got in ("False", str(case.shape.get(code)))


@cache
def _vocabulary(op: str) -> frozenset[str]:
    return frozenset(used(op, LEVELS[-1]))


def left_out(result: CaseResult, device: str, executor: str) -> Iterator[str]:
    """Of variations. executor: of the profile."""
    if not isinstance(result.left_out, dict):  # before suite 1.2
        for name in result.left_out:
            if not result.message.partition(f"the variation {name} is left out: declined for ")[2].strip():
                yield f"the variation {name} is left out without a reason"
        return
    for name, codes in result.left_out.items():
        if not codes or not all(code.strip() for code in codes):
            yield f"the variation {name} is left out without a reason"
        elif name in manners.MANNERS and set(codes) & {"device", "executor"}:
            here = manners.missing(name, device, executor)
            if tuple(codes) != (here,):
                yield f"the variation {name} is left out for {', '.join(codes)}, which {device} gives no cause for"
        if name not in result.case.variations:
            yield f"the variation {name} is left out, and the case has none such"
