"""The picture of a benchmark."""

from __future__ import annotations

import textwrap
from pathlib import Path

from xattn.cli.units import duration, unit_of
from xattn.measure import Timing

BASE, OTHER = "#7f7f7f", "#1f77b4"


def plot(timing: Timing, base: str, title: str, path: Path) -> None:
    """One bar a candidate: the median, with a line from the 10th to the 90th percentile. Writes a PNG."""
    # matplotlib takes most of a second to import; only --out needs it. A Figure without pyplot needs no display.
    from matplotlib.figure import Figure

    names = sorted(timing.samples, key=timing.p50, reverse=True)
    unit, size = unit_of(timing.p50(names[0]))
    figure = Figure(figsize=(9, 1.9 + 0.45 * len(names)), dpi=150, layout="constrained")
    axes = figure.subplots()
    for row, name in enumerate(names):
        p50 = timing.p50(name) / size
        low, high = (edge / size for edge in timing.spread(name))
        axes.barh(row, p50, height=0.6, color=BASE if name == base else OTHER)
        axes.plot((low, high), (row, row), color="black", linewidth=1.2, marker="|", markersize=7)
        ratio = "" if name == base else f", {timing.ratio(name, base):.2f}x"
        axes.annotate(
            f"{duration(timing.p50(name))}{ratio}",
            (max(p50, high), row),
            (6, 0),
            textcoords="offset points",
            va="center",
        )
    axes.set_yticks(range(len(names)), names)
    axes.set_xlim(0, 1.25 * max(max(timing.spread(name)[1], timing.p50(name)) for name in names) / size)
    axes.set_xlabel(f"{unit} a call: median, 10th to 90th percentile; ratios against {base}")
    axes.set_title(textwrap.fill(title, 95), fontsize=9, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    figure.supxlabel(textwrap.fill(timing.method, 130), fontsize=6.5, color="#555555", x=0.01, ha="left")
    figure.savefig(path)
