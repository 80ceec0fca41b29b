"""Which checks a case that passed must have: they follow from what it asks for."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator

from xattn_conformance.case import SUITES, Case
from xattn_conformance.ops.registry import OPS
from xattn_conformance.result import CaseResult
from xattn_conformance.running.soak import SOAK

# Measured wherever a tensor has an element with a tolerance; over one column there is neither a row nor a gain.
_METRICS = ("zmax", "zhead", "bias")
_OF_ROWS = ("zrow", "gain")
# These are the request itself, so a backend that takes the one takes the other.
_SAME_REQUEST = ("repeat", "poison")


def incomplete(result: CaseResult, knob: bool, soaked: bool, judged: Callable[[str], bool]) -> Iterator[str]:
    """What was asked for and not looked at, a sentence each.

    knob: whether the case asks if an option does anything. soaked: whether the run made each call many times.
    judged: whether the golden of a tensor has an element with a tolerance; asked only where nothing of the tensor was
    measured.
    """
    case = result.case
    names = {check.name for check in result.checks}
    if lacking := [name for name in _rules(case, knob) if name not in names]:
        yield f"not looked at: {', '.join(lacking)}"
    if "knob.ignored" in names and not knob:
        yield "knob.ignored was looked at, and the case is of no knob"
    for tensor in (*_results(case), *_parts(case)):
        yield from _compared(tensor, names, case, judged)
    for variation in case.variations:
        yield from _varied(variation, result, names, judged)
    if soaked and not knob and f"{SOAK}.bits" not in names:
        for tensor in (*_results(case), *_parts(case)):
            yield from _compared(f"{SOAK}:{tensor}", names, case, judged)


def _results(case: Case) -> tuple[str, ...]:
    return tuple(OPS[case.op].wanted(case).columns)


def _parts(case: Case) -> tuple[str, ...]:
    return OPS[case.op].wanted(case).parts


def _rules(case: Case, knob: bool) -> Iterator[str]:
    """Checks without which no case passes."""
    for name in _results(case):
        yield from (f"{name}.{rule}" for rule in ("missing", "shape", "dtype", "device"))
    yield from (f"{name}.contiguous" for name in OPS[case.op].wanted(case).contiguous)
    yield from ("inputs.written", "results.kept")
    # A report of an earlier suite is not asked for what that did not look at.
    earlier = SUITES.index(case.since) < SUITES.index("1.2")
    if not earlier:
        yield "state.kept"
    if knob:
        yield "knob.ignored"
    if OPS[case.op].by_chance(case):
        yield from OPS[case.op].wanted(case).by_chance
        yield from () if knob else ("seed.bits", "seed.ignored", *(() if earlier else ("seed.stuck",)))


def _compared(tensor: str, names: Collection[str], case: Case, judged: Callable[[str], bool]) -> Iterator[str]:
    """tensor: its name in the checks, a variation's in front."""
    bare = tensor.rpartition(":")[2]
    wanted = [f"{tensor}.finite", f"{tensor}.exact"]
    # A bias may have one column: its own checks say whether it does.
    columns = _columns(bare, case) or (2 if {f"{tensor}.{metric}" for metric in _OF_ROWS} & set(names) else 1)
    metrics = [f"{tensor}.{metric}" for metric in (*_METRICS, *(_OF_ROWS if columns > 1 else ()))]
    if any(name in names for name in metrics) or judged(bare):
        wanted += metrics
    if lacking := [name for name in wanted if name not in names]:
        yield f"{tensor} was not compared: there is no {', '.join(lacking)}"


def _columns(tensor: str, case: Case) -> int | None:
    wanted = OPS[case.op].wanted(case)
    return 1 if tensor in wanted.parts else wanted.columns[tensor]


def _varied(variation: str, result: CaseResult, names: Collection[str], judged: Callable[[str], bool]) -> Iterator[str]:
    """A variation leads to equal bits or is compared with the golden, or the backend declined it."""
    if f"{variation}.bits" in names:
        return
    if variation in result.left_out:
        if variation in _SAME_REQUEST:
            yield f"the variation {variation} is the request of the case itself, and it is left out"
        return
    if not any(name.startswith(f"{variation}:") for name in names):
        yield f"the variation {variation} was not looked at"
        return
    wanted = OPS[result.case.op].wanted(result.case)
    results = [name for name in _results(result.case) if variation not in wanted.apart or name in wanted.per_row]
    if lacking := [f"{variation}:{name}.shape" for name in results if f"{variation}:{name}.shape" not in names]:
        yield f"not looked at: {', '.join(lacking)}"
    for tensor in (*results, *_parts(result.case)):
        yield from _compared(f"{variation}:{tensor}", names, result.case, judged)
