"""What the numbers of one case must be to each other: counts, the histogram, the worst element."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator

from xattn_conformance.result import HISTOGRAM_BINS, HISTOGRAM_STEP, CaseResult, Check
from xattn_conformance.tolerance.compare import BY_COUNT

# Checks have six digits.
_DIGITS = 2e-6

Limit = Callable[[str, float], float]


def impossible(result: CaseResult, limit: Limit, counts: Callable[[str], Collection[float]]) -> Iterator[str]:
    """Numbers that no measurement leaves behind, a sentence each.

    counts: how many samples the heads of a tensor are, worked out from the golden; asked only where a count decides
    whether the case passes."""
    for check in result.checks:
        if not 1 <= check.count < math.inf:
            yield f"{check.name} was taken over {check.count:g} samples"
        if check.value is not None and not 0 <= check.value < math.inf:
            yield f"{check.name} is {check.value:g}"
    if result.status not in ("PASS", "WAIVED"):
        return
    for check in result.checks:
        yield from _miscounted(check, limit, counts)
    yield from _histogram(result, limit)
    yield from _worst(result)


def _miscounted(check: Check, limit: Limit, counts: Callable[[str], Collection[float]]) -> Iterator[str]:
    """The fewer samples, the more a mean may be: a count must be that of a head of the case."""
    tensor, _, metric = check.name.rpartition(":")[2].rpartition(".")
    if metric not in BY_COUNT or check.value is None or check.value <= limit(metric, math.inf):
        return
    known = counts(tensor)
    if not any(math.isclose(check.count, count, rel_tol=1e-3, abs_tol=0.01) for count in known):
        heads = ", ".join(f"{count:g}" for count in sorted(known)) or "none"
        yield f"{check.name} was taken over {check.count:g} samples, and the heads of the case are {heads}"


def _histogram(result: CaseResult, limit: Limit) -> Iterator[str]:
    """Its last full bin is that of the largest error."""
    bins, largest = result.histogram, {check.name: check.value for check in result.checks}.get("out.zmax")
    if not any(bins) or largest is None:
        return
    if bins[-1] and result.status == "PASS":
        yield f"PASS, but in its histogram {bins[-1]} elements are over the limit"
        return
    top = max(place for place, count in enumerate(bins) if count)
    places = {_bin(largest * (1 + digits), limit) for digits in (-_DIGITS, _DIGITS)}
    if len(bins) != HISTOGRAM_BINS or top not in places:
        yield f"its histogram ends in bin {top}, and out.zmax is {largest:g}, in bin {min(places)}"


def _bin(error: float, limit: Limit) -> int:
    return min(int(error / limit("zmax", 1) / HISTOGRAM_STEP), HISTOGRAM_BINS - 1)


def _worst(result: CaseResult) -> Iterator[str]:
    """Where nothing failed it is the element with the largest error of all."""
    largest = {
        check.name.rpartition(".")[0]: check.value
        for check in result.checks
        if check.name.endswith(".zmax") and ":" not in check.name and check.value is not None
    }
    worst = result.worst
    if worst is None or not largest:
        return
    most = max(largest.values())
    if largest.get(worst.tensor, 0.0) < most:
        yield f"its worst element is of {worst.tensor}, whose errors are not the largest"
    got, want, sigma = worst.got, worst.want, worst.sigma
    if isinstance(got, str) or isinstance(want, str) or isinstance(sigma, str) or sigma <= 0:
        return
    # An error that is declared and always of one sign is taken off first, so there may be more to see than counts.
    if (error := abs(got - want) / sigma) < most * (1 - 1e-4):
        yield f"its worst element is {error:g} from the golden, and zmax is {most:g}"
