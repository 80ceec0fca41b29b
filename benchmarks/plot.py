"""The picture of a run: every row against its bar, and how a window's cost grows."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

from common import Row
from matplotlib.axes import Axes
from matplotlib.figure import Figure

END = 2.0
MET, MISSED, MEMORY = "#2a7f3f", "#b5342b", "#7f4fa8"


def plot(rows: Sequence[Row], footer: str, path: Path) -> None:
    """Writes a PNG."""
    shown = [row for row in rows if row.value is not None and row.limit > 0]
    grown = {
        key: row.data for row in rows if row.subject == "window" for key in ("ms", "extra_bytes") if key in row.data
    }
    height = 1.8 + 0.42 * len(shown)
    figure = Figure(figsize=(16 if grown else 11, height), dpi=130, layout="constrained")
    if grown:
        left, right = figure.subplots(1, 2, width_ratios=(2.1, 1))
        _growth(right, grown)
    else:
        left = figure.subplots()
    _bars(left, shown)
    figure.supxlabel(textwrap.fill(footer, 180), fontsize=7.5, color="#555555", x=0.01, ha="left")
    figure.savefig(path)


def _bars(axes: Axes, rows: Sequence[Row]) -> None:
    # A difference can be below zero and a ratio far above its bar; both ends are cut, the text says the number.
    for place, row in enumerate(reversed(rows)):
        assert row.value is not None
        color = MET if row.met else MISSED
        axes.barh(place, min(max(row.value / row.limit, 0.0), END), height=0.55, color=color)
        axes.text(END + 0.08, place, textwrap.fill(row.measured, 40), va="center", fontsize=8, color=color)
    axes.axvline(1.0, color="black", linewidth=1, linestyle="--")
    labels = [f"{textwrap.fill(row.what, 66)}\n{row.bar}" for row in reversed(rows)]
    axes.set_yticks(range(len(rows)), labels, fontsize=7.5)
    axes.set_xlim(0, END + 1.0)
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.set_xticks((0, 0.5, 1, 1.5, END), ("0", "0.5", "the bar", "1.5", f">= {END:g}"))
    axes.set_title("Measured, as a share of the bar (less is better)", fontsize=10, loc="left")
    axes.spines[["top", "right"]].set_visible(False)


def _growth(axes: Axes, grown: dict[str, dict[str, list[float]]]) -> None:
    for key, label, scale, color in (("ms", "time, ms", 1.0, MET), ("extra_bytes", "memory, MiB", 2**-20, MEMORY)):
        if key in grown:
            costs = [cost * scale for cost in grown[key][key]]
            sizes = grown[key]["seqlens"]
            axes.loglog(sizes, costs, marker="o", color=color, label=label)
            line = [costs[0] * size / sizes[0] for size in sizes]
            axes.loglog(sizes, line, color=color, linewidth=1, linestyle=":")
            axes.set_xticks(sizes, [f"{size:,}" for size in sizes], fontsize=8)
    axes.minorticks_off()
    axes.set_xlabel("seqlen")
    axes.legend(frameon=False)
    axes.set_title("A sliding window (dotted: linear growth)", fontsize=10, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
