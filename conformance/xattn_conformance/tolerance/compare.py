"""The one comparison: backends, canaries and mutants all pass through it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from xattn_conformance.array import Array
from xattn_conformance.result import HISTOGRAM_BINS, HISTOGRAM_STEP, Check, Heat, Worst
from xattn_conformance.tolerance.expected import Expected
from xattn_conformance.tolerance.limits import limit

# The heat map is at most so many cells high and wide.
_CELLS = 32

# Metrics of heads whose limit depends on how many samples a head is.
BY_COUNT = ("zhead", "bias")


@dataclass(frozen=True)
class Comparison:
    """checks: every metric of every tensor against its limit. places: by the name of a failed check, the element that
    failed it, or the worst of the row or head that did. worst: the first of those, else the largest error. heat,
    histogram: as in `CaseResult`."""

    checks: tuple[Check, ...]
    places: Mapping[str, Worst]
    worst: Worst | None
    heat: Heat | None
    histogram: tuple[int, ...]

    @property
    def failed(self) -> tuple[Check, ...]:
        return tuple(check for check in self.checks if not check.ok)


@dataclass(frozen=True)
class _Errors:
    """One tensor's errors. z (batch, heads, rows, columns): in standard deviations, 0 where it is not judged so;
    judged: where it is; finite, exact: where a hard rule is broken; counts: as of `samples`."""

    z: Array
    judged: NDArray[np.bool_]
    finite: NDArray[np.bool_]
    exact: NDArray[np.bool_]
    counts: Array


def compare(expected: Mapping[str, Expected], got: Mapping[str, Array]) -> Comparison:
    """Compare whole results, laid out as (batch, heads, rows, columns), with the golden ones by name.

    Whatever is expected must be in `got`, in the right shape; what else is there is not looked at. Each is looked at in
    seven ways: where it is finite, where it must be met exactly, and its error in standard deviations: the largest
    element (zmax), the root mean squares of rows (zrow) and of heads (zhead), and of heads the mean (bias) and the part
    that lies along the golden (gain: a result that is too large or too small throughout).
    """
    errors = {name: _errors(one, one.of(name, got)) for name, one in expected.items()}
    checks = [check for name, one in expected.items() for check in _checks(name, one, errors[name], got)]
    places = {}
    for check in checks:
        name, _, metric = check.name.rpartition(".")
        if not check.ok and metric != "astray":
            at = _place(metric, expected[name], errors[name])
            places[check.name] = _element(name, expected[name], got, at)
    worst = next(iter(places.values()), None) or _largest(expected, got, errors)
    heat, histogram = None, (0,) * HISTOGRAM_BINS
    if "out" in errors and errors["out"].z.size > 0:
        heat = _heat(expected["out"], errors["out"])
        scaled = np.abs(errors["out"].z[errors["out"].judged]) / limit("zmax", 1)
        bins = np.minimum(scaled / HISTOGRAM_STEP, HISTOGRAM_BINS - 1).astype(int)
        histogram = tuple(int(n) for n in np.bincount(bins, minlength=HISTOGRAM_BINS))
    return Comparison(tuple(checks), places, worst, heat, histogram)


def every_check(expected: Mapping[str, Expected], got: Mapping[str, Array]) -> tuple[Check, ...]:
    """The checks of `compare`, for who asks nothing else."""
    found = (_checks(name, one, _errors(one, one.of(name, got)), got) for name, one in expected.items())
    return tuple(check for checks in found for check in checks)


def failures(expected: Mapping[str, Expected], got: Mapping[str, Array]) -> tuple[Check, ...]:
    """Those beyond their limits."""
    return tuple(check for check in every_check(expected, got) if not check.ok)


def _errors(expected: Expected, got: Array) -> _Errors:
    want, sigma = expected.value, expected.sigma
    # A NaN that a query sees may reach other rows of its head, but no other head.
    excused = np.isnan(want).any(axis=(2, 3), keepdims=True) & np.isnan(got)
    judged = np.isfinite(want) & np.isfinite(got) & (sigma > 0)
    by_value = np.isfinite(want) & (sigma > 0)
    finite = ~excused & (np.isfinite(want) != np.isfinite(got))
    exact = ~excused & ~by_value & (got != want) & ~(np.isnan(want) & ~np.isfinite(got))
    with np.errstate(invalid="ignore", over="ignore"):
        error = got - want
        beyond = np.sign(error) * np.maximum(np.abs(error) - expected.slack, 0.0)
        z = np.where(judged, beyond / np.where(judged, sigma, 1.0), 0.0)
    return _Errors(z, judged, finite, exact, samples(expected, judged))


def _checks(name: str, expected: Expected, error: _Errors, got: Mapping[str, Array]) -> list[Check]:
    found = _toleranced(name, expected, error)
    if expected.rows is not None:
        found.append(Check(name=f"{name}.astray", value=float(expected.astray(name, got)), limit=0.0))
    return found


def _toleranced(name: str, expected: Expected, error: _Errors) -> list[Check]:
    found = [
        Check(name=f"{name}.finite", value=float(error.finite.sum()), limit=0.0),
        Check(name=f"{name}.exact", value=float(error.exact.sum()), limit=0.0),
    ]
    if not error.judged.any():
        return found
    metrics = ("zmax", "zrow", "gain", "zhead", "bias") if error.z.shape[3] > 1 else ("zmax", "zhead", "bias")
    for metric in metrics:
        values = _values(metric, expected, error)
        at = _closest(metric, values, error.counts)
        count = round(float(error.counts[at]), 2) if metric in BY_COUNT else 1.0
        found.append(Check(name=f"{name}.{metric}", value=_short(values[at]), limit=limit(metric, count), count=count))
    return found


def _values(metric: str, expected: Expected, error: _Errors) -> Array:
    """A metric of every element, row or head that it is taken of."""
    if metric == "zmax":
        return np.abs(error.z)
    columns = error.judged.sum(axis=3)
    if metric == "zrow":
        rows: Array = np.sqrt((error.z**2).sum(axis=3) / np.maximum(columns, 1))
        return rows
    if metric == "gain":
        return _gains(expected, error)
    elements = np.maximum(columns.sum(axis=2), 1)
    total = error.z.sum(axis=(2, 3)) if metric == "bias" else (error.z**2).sum(axis=(2, 3))
    heads: Array = np.abs(total / elements) if metric == "bias" else np.sqrt(total / elements)
    return heads


def _closest(metric: str, values: Array, counts: Array) -> tuple[int, ...]:
    """Where a metric comes closest to its limit. Every head is held to the limit for as many different rows as it
    has."""
    if metric in BY_COUNT:
        values = values / np.vectorize(lambda count: limit(metric, round(count, 2)), otypes=[float])(counts)
    return tuple(int(i) for i in np.unravel_index(np.argmax(values), values.shape))


def _short(x: float) -> float:
    """Six digits: a report has tens of thousands of such numbers."""
    return float(f"{x:.6g}")


def _gains(expected: Expected, error: _Errors) -> Array:
    """How far each head is too large or too small throughout, in standard deviations, (batch, heads).

    The error along the golden, as a filter for the factor 1 + epsilon would take it. A row's errors may all have one
    sign, that of a probability of weight; rows count as `counts` of them."""
    with np.errstate(invalid="ignore"):
        signal = np.where(error.judged, expected.value / np.where(error.judged, expected.sigma, 1.0), 0.0)
    along, rows = (error.z * signal).sum(axis=(2, 3)), np.abs(signal).sum(axis=3)
    size = np.sqrt((rows**2).sum(axis=2))
    share = np.sqrt(error.counts / np.maximum((rows > 0).sum(axis=2), 1))
    gains: Array = np.abs(np.divide(along, size, out=np.zeros_like(size), where=size > 0)) * np.minimum(share, 1.0)
    return gains


def samples(expected: Expected, judged: NDArray[np.bool_]) -> Array:
    """How many independent samples a head's rows are, (batch, heads).

    Equal rows have equal errors, and of what rows have in common there is one sample, not many: a mean of n rows with a
    share f of their variance in common varies by f + (1 - f) / n.
    """
    batch, heads = expected.value.shape[:2]
    counts = np.ones((batch, heads))
    for index in np.ndindex(batch, heads):
        own = judged[index]
        rows = expected.value[index][own.any(axis=1)]
        # To nine digits: the golden's own last bits are no difference.
        finite = np.isfinite(rows)
        size = np.abs(rows[finite]).max(initial=0.0)
        rounded = np.round(np.where(finite, rows, 0.0) / (size or 1.0) * 1e9) + 0.0  # + 0.0: of two zeros one
        keys = np.where(finite, rounded, rows)
        different = max(1, len({row.tobytes() for row in keys}))
        shared = 0.0 if expected.common is None or not own.any() else float(expected.common[index][own].mean())
        counts[index] = 1 / (shared + (1 - shared) / different)
    return counts


def _place(metric: str, expected: Expected, error: _Errors) -> tuple[int, ...]:
    """Where to look for what failed a metric: the first element that breaks a rule without tolerance, or the largest
    error of the element, row or head that came closest to the limit."""
    if metric in ("finite", "exact"):
        broken = error.finite if metric == "finite" else error.exact
        return tuple(int(i) for i in np.unravel_index(int(np.argmax(broken)), broken.shape))
    at = _closest(metric, _values(metric, expected, error), error.counts)
    part = np.abs(error.z[at])
    return (*at, *(int(i) for i in np.unravel_index(int(np.argmax(part)), part.shape))) if part.ndim else at


def _largest(expected: Mapping[str, Expected], got: Mapping[str, Array], errors: Mapping[str, _Errors]) -> Worst | None:
    """The element with the largest error of all, where nothing failed."""
    sizes = {name: np.abs(error.z) for name, error in errors.items() if error.z.size}
    if not sizes:
        return None
    name = max(sizes, key=lambda name: float(sizes[name].max()))
    at = tuple(int(i) for i in np.unravel_index(int(np.argmax(sizes[name])), sizes[name].shape))
    return _element(name, expected[name], got, at)


def _element(name: str, one: Expected, got: Mapping[str, Array], at: tuple[int, ...]) -> Worst:
    b, h, r, c = at
    return Worst(
        tensor=name,
        index=(b, h, r if one.rows is None else int(one.rows[r]), c),
        got=_number(one.of(name, got)[at]),
        want=_number(one.value[at]),
        sigma=_number(one.sigma[at]),
    )


def _number(x: float) -> float | str:
    return float(x) if np.isfinite(x) else str(float(x))


def _heat(expected: Expected, error: _Errors) -> Heat:
    columns = np.maximum(error.judged.sum(axis=3), 1)
    zrow = np.sqrt((error.z**2).sum(axis=3) / columns) / limit("zrow", 1)
    zrow[(error.finite | error.exact).any(axis=3)] = np.inf
    flat = zrow.reshape(-1, zrow.shape[2]).T  # (rows, batch * heads)
    row_starts = np.unique(np.linspace(0, flat.shape[0], _CELLS, endpoint=False).astype(int))
    head_starts = np.unique(np.linspace(0, flat.shape[1], _CELLS, endpoint=False).astype(int))
    cells = np.maximum.reduceat(np.maximum.reduceat(flat, row_starts, axis=0), head_starts, axis=1)
    rows = row_starts if expected.rows is None else expected.rows[row_starts]
    return Heat(
        rows=tuple(int(row) for row in rows),
        heads=tuple(int(head) for head in head_starts),
        cells=tuple(tuple(round(float(x), 3) if np.isfinite(x) else None for x in line) for line in cells),
    )
