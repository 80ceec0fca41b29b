"""The histogram of errors against the limit, as the bars of a small chart."""

from __future__ import annotations

import math
from dataclasses import dataclass

from xattn_conformance.result import HISTOGRAM_BINS, HISTOGRAM_STEP, Report

# In the units of the chart's view box. The left margin holds the counts, the one below the multiples of the limit.
WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 340, 150, 34, 22, 14
PITCH = (WIDTH - LEFT) / HISTOGRAM_BINS
# How many decades a count of 1 stands above the base line, so that one element is seen.
ONE = 0.35


@dataclass(frozen=True)
class Bar:
    """One bin of one dtype, in view box units. over: whether it lies beyond the limit."""

    x: float
    y: float
    height: float
    over: bool
    title: str


@dataclass(frozen=True)
class Chart:
    """One dtype. ticks: (y, text) of the powers of ten."""

    dtype: str
    elements: int
    over: int
    bars: tuple[Bar, ...]
    ticks: tuple[tuple[float, str], ...]


def charts(report: Report) -> list[Chart]:
    """One chart for each dtype that has a histogram: elements of out in all its cases, all on the same log scale."""
    sums = {dtype: [0] * HISTOGRAM_BINS for dtype in report.dtypes}
    for result in report.cases:
        for bin_, count in enumerate(result.histogram):
            sums[result.case.dtype][bin_] += count
    sums = {dtype: counts for dtype, counts in sums.items() if any(counts)}
    decades = max((math.ceil(math.log10(max(counts))) for counts in sums.values()), default=1) or 1
    return [_chart(dtype, counts, decades) for dtype, counts in sums.items()]


def _chart(dtype: str, counts: list[int], decades: int) -> Chart:
    span = HEIGHT - BOTTOM - TOP

    def height(count: int) -> float:
        return round(span * (math.log10(count) + ONE) / (decades + ONE), 1)

    bars = []
    for bin_, count in enumerate(counts):
        if count:
            over = bin_ == HISTOGRAM_BINS - 1
            edges = "beyond the limit" if over else f"{bin_ * HISTOGRAM_STEP:.2f} to {(bin_ + 1) * HISTOGRAM_STEP:.2f}"
            tall = height(count)
            bars.append(Bar(round(LEFT + bin_ * PITCH, 1), HEIGHT - BOTTOM - tall, tall, over, f"{edges}: {count:,}"))
    step = 1 if decades <= 4 else 2
    ticks = tuple((HEIGHT - BOTTOM - height(10**power), _power(power)) for power in range(0, decades + 1, step))
    return Chart(dtype, sum(counts), counts[-1], tuple(bars), ticks)


def _power(power: int) -> str:
    """10^power as one reads it: 1, 10, ..., 10k, 1M."""
    names = ("", "k", "M", "G", "T")
    return f"{10 ** (power % 3)}{names[power // 3]}"
