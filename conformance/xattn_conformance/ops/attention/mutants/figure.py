"""The figure of docs/conformance.md: what a fixed bound on the error tells apart, and what the suite's limits do.

`python -m xattn_conformance.ops.attention.mutants.figure docs/conformance.svg`; a name in .png gives a picture to look
at. Needs matplotlib, which comes with the extra `cli`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray

from xattn_conformance.array import Array
from xattn_conformance.case import Case, scores
from xattn_conformance.mutants.mutant import Results
from xattn_conformance.ops.attention.mutants.right import RIGHT
from xattn_conformance.ops.attention.mutants.zoo import MUTANTS
from xattn_conformance.ops.attention.op import AttentionOp
from xattn_conformance.reports.tally import nearness
from xattn_conformance.tolerance.arithmetic import CANONICAL
from xattn_conformance.tolerance.compare import every_check
from xattn_conformance.tolerance.expected import Expected

OP = AttentionOp()
DTYPE = "bfloat16"
CASES = 60
SCORES_MAX = 2**15
# What tests of kernels in bfloat16 commonly allow.
USUAL = 1e-2
# Okabe and Ito's, which the colour-blind tell apart.
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#555555"

# Of each run: the kernel's number, its largest absolute error, its largest value of a check relative to the limit.
Points = NDArray[np.float64]


def chosen() -> list[Case]:
    """Cases of all features and families: those whose seeds come first."""
    small = [case for case in OP.cases() if case.dtype == DTYPE and scores(case) <= SCORES_MAX]
    return sorted(small, key=lambda case: case.seed)[:CASES]


def runs(cases: Sequence[Case]) -> tuple[Points, Points]:
    """Right kernels, each under its own arithmetic, and mutants."""
    right, wrong = list[tuple[float, ...]](), list[tuple[float, ...]]()
    for case in cases:
        problem = OP.problem(case)
        for number, kernel in enumerate(RIGHT):
            if kernel.serves(problem):
                right += _point(number, OP.expected(case, problem, kernel.arithmetic), kernel.run(problem))
        golden = OP.expected(case, problem, CANONICAL)
        for number, mutant in enumerate(MUTANTS):
            if DTYPE not in mutant.equivalent_in and mutant.applies(problem):
                with np.errstate(all="ignore"):  # as `mutants_on`
                    results = mutant.run(problem, CANONICAL)
                wrong += _point(number, golden, results)
    return np.array(right), np.array(wrong)


def _point(number: int, expected: Mapping[str, Expected], results: Results) -> Iterator[tuple[float, ...]]:
    asked = {name: one for name, one in expected.items() if name in results}
    if any(one.value.size for one in asked.values()):
        over = max(nearness(check) for check in every_check(asked, results))
        yield number, max(_error(one.value, one.of(name, results)) for name, one in asked.items()), over


def _error(want: Array, got: Array) -> float:
    """Largest absolute error; inf where one is finite and the other is not."""
    with np.errstate(invalid="ignore"):
        error = np.where(np.isfinite(want) & np.isfinite(got), np.abs(got - want), np.inf)
    # What need not be finite is as right as it can be.
    return float(np.where((got == want) | (np.isnan(want) & ~np.isfinite(got)), 0.0, error).max(initial=0.0))


def draw(right: Points, wrong: Points, path: str) -> None:
    mpl.use("agg")
    mpl.rcParams.update({"font.size": 11, "svg.hashsalt": "xattn", "axes.spines.left": False})
    mpl.rcParams.update({"axes.spines.top": False, "axes.spines.right": False})
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(1, 2, figsize=(9, 4.8), sharey=True, layout="constrained")
    error, checked = 1, 2
    loose = right[np.isfinite(right[:, error]), error].max()
    loosely = f"A bound of {loose:.2g}, which no\nright one fails: {_passing(wrong, error, loose)}"
    through = f"{_passing(wrong, error, USUAL)}\n{loosely}"
    _panel(panels[0], right[:, error], wrong[:, error], (1e-5, 1e3), USUAL, through)
    panels[0].set(title="A bound on the error", xlabel=f"largest absolute error; the line is at {USUAL:g}")
    _panel(panels[1], right[:, checked], wrong[:, checked], (1e-2, 1e5), 1.0, _passing(wrong, checked, 1.0))
    panels[1].set(title="The suite's checks", xlabel="largest value of a check, relative to its limit")
    panels[0].set_yticks([])
    metadata = {"Date": None} if path.endswith(".svg") else None
    figure.savefig(path, dpi=100, metadata=metadata)


def _percent(which: NDArray[np.bool_]) -> str:
    return f"{100 * which.mean():.0f} %"


def _passing(wrong: Points, column: int, line: float) -> str:
    """The share of runs that pass, and how many mutants pass in every case."""
    numbers = set(wrong[:, 0])
    always = numbers - set(wrong[wrong[:, column] > line, 0])
    return f"{_percent(wrong[:, column] <= line)} pass,\n{len(always)} of {len(numbers)} in every case"


def _panel(panel: Any, right: Array, wrong: Array, ends: tuple[float, float], line: float, through: str) -> None:
    """Right kernels upwards, mutants downwards; what lies beyond an end is counted in the bin there."""
    low, high = np.log10(ends)
    bins = np.logspace(low, high, 1 + 6 * round(high - low))
    for values, colour, sign in ((right, BLUE, 1), (wrong, ORANGE, -1)):
        counts, _ = np.histogram(np.clip(values, bins[0], bins[-1]), bins)
        panel.bar(bins[:-1], sign * counts / counts.sum(), np.diff(bins), align="edge", color=colour)
    panel.axvline(line, color="black", linewidth=1.2, linestyle="--")
    panel.axhline(0, color=GREY, linewidth=0.8)
    panel.set_xscale("log")
    panel.set_xlim(bins[0], bins[-1])
    panel.minorticks_off()
    panel.margins(y=0.12)
    beside = {"x": line * 1.3, "transform": panel.get_xaxis_transform()}
    panel.text(y=0.97, s=f"right kernels: {_percent(right > line)} fail", color=BLUE, va="top", **beside)
    panel.text(y=0.03, s=f"wrong kernels: {through}", color=ORANGE, va="bottom", **beside)
    panel.annotate(
        "not finite, or\na rule broken",
        (bins[-2], 0),
        (0.97, 0.6),
        textcoords="axes fraction",
        color=GREY,
        ha="right",
        arrowprops={"arrowstyle": "-", "color": GREY},
    )


def main() -> int:
    if len(sys.argv) != 2:
        print("usage: python -m xattn_conformance.ops.attention.mutants.figure FILE.svg", file=sys.stderr)
        return 2
    right, wrong = runs(chosen())
    draw(right, wrong, sys.argv[1])
    print(f"{len(right)} runs of right kernels, {len(wrong)} of mutants, {len(chosen())} cases in {DTYPE}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
