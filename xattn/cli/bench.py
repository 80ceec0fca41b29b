"""`xattn bench`: a call of the default op on every backend that can serve it, and on torch's own SDPA where that can
express it."""

from __future__ import annotations

import importlib.util
import json as jsonlib
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from xattn import AttentionRequest
from xattn.cli.candidates import TORCH, candidates_of
from xattn.cli.explain import show
from xattn.cli.flags import Flags, takes_flags
from xattn.cli.plot import plot
from xattn.cli.request import present
from xattn.cli.terminal import FAILED, err, narrow_table, out, print_json, usage_errors
from xattn.cli.units import duration
from xattn.explain import Explanation, explain_request
from xattn.measure import Timing, alternate, once
from xattn.measure.timing import MIN_ROUNDS, Candidates, OnRound
from xattn.plugin.devices import card

# The progress bar is drawn between rounds, this rarely, so that drawing it costs the measurement nothing.
REDRAW_SECONDS = 0.25


@dataclass(frozen=True)
class Tried:
    """What one call of each candidate took, in microseconds, or how it failed."""

    took: Mapping[str, float]
    failures: Mapping[str, str]

    def repeated(self, seconds: float) -> list[str]:
        """Those that are worth more than that one call: they fit into the time there is to measure."""
        return [name for name, took in self.took.items() if took <= seconds * 1e6]


@dataclass(frozen=True)
class Bench:
    """What was measured. `base` is what the others are compared with: torch's SDPA, or the chosen backend. `once` has
    the microseconds of those too slow to be called more than once."""

    explanation: Explanation
    device: str
    base: str | None
    timing: Timing | None
    once: Mapping[str, float]
    failures: Mapping[str, str]

    def as_dict(self) -> dict[str, Any]:
        measured: dict[str, Any] = {"base": None, "candidates": {}, "method": ""}
        if self.timing is not None and self.base is not None:
            measured = self.timing.as_dict(self.base)
        return {
            "request": str(self.explanation.request),
            "backend": self.explanation.backend,
            "device": self.device,
            **measured,
            "kernels": {name: kernel for name, kernel in kernels(self.explanation).items() if name in self.names()},
            "once_us": dict(self.once),
            "failures": dict(self.failures),
        }

    def names(self) -> list[str]:
        return [*(() if self.timing is None else self.timing.samples), *self.once, *self.failures]


@takes_flags
def bench(
    flags: Flags,
    seconds: Annotated[float, typer.Option(min=0.01, help="How long to measure, about, after one call of each.")] = 3.0,
    out_dir: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Write bench.json and bench.png there.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Time a call on every backend that can serve it, and torch's own SDPA called directly where it can express it.

    Random tensors on this machine's device; with a --grad option, forward and
    backward together. What takes longer than --seconds is called once.

    Exits with 1 where no backend can serve the call or one fails.
    """
    with usage_errors():
        device = present(flags.device)
        prepared = flags.prepared()
        request = prepared.request
        assert isinstance(request, AttentionRequest)
        explanation = explain_request(request, flags.choice, prepared.given)
        if explanation.backend is None:
            show(explanation, err())
            raise typer.Exit(FAILED)
        if out_dir is not None and importlib.util.find_spec("matplotlib") is None:
            raise typer.BadParameter("the picture needs matplotlib: pip install 'xattn[cli]'", param_hint="--out")
        candidates = candidates_of(flags, request, explanation, device)
        err().print(f"One call of each of {len(candidates)}, then about {seconds:g} s of rounds.")
        tried = try_each(candidates, device, seconds)
        least = (1 + MIN_ROUNDS) * sum(tried.took[name] for name in tried.repeated(seconds))
        if least > seconds * 1e6:
            err().print(f"A warm-up and {MIN_ROUNDS} rounds are the least: about {duration(least)}.")
        with _Bar() as on_round:
            result = measure(candidates, tried, explanation, device, seconds, on_round)
    if json:
        print_json(result.as_dict())
    else:
        show_bench(result, out())
    if out_dir is not None:
        out_dir.mkdir(parents=True, exist_ok=True)
        (out_dir / "bench.json").write_text(jsonlib.dumps(result.as_dict(), indent=2) + "\n")
        if result.timing is not None and result.base is not None:
            plot(result.timing, result.base, str(request), out_dir / "bench.png")
    if result.failures:
        raise typer.Exit(FAILED)


class _Bar:
    """A bar on stderr, advanced by whoever measures."""

    def __init__(self) -> None:
        columns = (TextColumn("Measuring"), BarColumn(), TextColumn("round {task.completed}"), TimeRemainingColumn())
        self._progress = Progress(*columns, console=err(), auto_refresh=False, transient=True)
        self._task = self._progress.add_task("", total=None)
        self._drawn = 0.0

    def __enter__(self) -> OnRound:
        self._progress.start()
        self._progress.refresh()
        return self._on_round

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def _on_round(self, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self._drawn > REDRAW_SECONDS:
            self._drawn = now
            self._progress.update(self._task, completed=done, total=total, refresh=True)


def try_each(candidates: Candidates, device: torch.device, seconds: float) -> Tried:
    took, failures = {}, {}
    for name, run in candidates.items():
        # Whatever a vendor's kernel raises is one line of the table, and the others are measured all the same.
        try:
            took[name] = once(run, device)
            if took[name] > seconds * 1e6 and device.type != "cpu":
                took[name] = once(run, device)  # a first call compiles there
        except Exception as error:
            failures[name] = f"{type(error).__name__}: {error}".splitlines()[0]
    return Tried(took, failures)


def measure(
    candidates: Candidates,
    tried: Tried,
    explanation: Explanation,
    device: torch.device,
    seconds: float,
    on_round: OnRound | None = None,
) -> Bench:
    repeated = tried.repeated(seconds)
    once_only = {name: took for name, took in tried.took.items() if name not in repeated}
    if not repeated:
        return Bench(explanation, card(device), None, None, once_only, tried.failures)
    base = next((name for name in (TORCH, explanation.backend) if name in repeated), repeated[0])
    runs = {name: candidates[name] for name in repeated}
    timing = alternate(runs, device=device, seconds=seconds, on_round=on_round)
    return Bench(explanation, card(device), base, timing, once_only, tried.failures)


def kernels(explanation: Explanation) -> dict[str, str]:
    named = {candidate.name: candidate.kernel for candidate in explanation.candidates}
    return {TORCH: "F.scaled_dot_product_attention on the same transposed views", **named}


def show_bench(result: Bench, console: Console) -> None:
    console.print(Text(str(result.explanation.request)))
    if result.explanation.request.phase == "train":
        console.print("Forward and backward together.")
    table = narrow_table()
    table.add_column("Candidate", no_wrap=True)
    for column in ("p50", "p10 to p90", "Difference", "Ratio"):
        table.add_column(column, justify="right", no_wrap=True)
    if result.timing is not None and result.base is not None:
        for name in sorted(result.timing.samples, key=result.timing.p50):
            table.add_row(*_measured(result, result.timing, result.base, name))
    for name, took in sorted(result.once.items(), key=lambda each: each[1]):
        table.add_row(Text(name), duration(took), Text("one call", "dim"))
    for name in result.failures:
        table.add_row(Text(name, "red"), Text("failed", "red"))
    console.print(table)
    about = Table.grid(padding=(0, 2))
    named = kernels(result.explanation)
    for name in result.names():
        about.add_row(
            Text(name), Text(result.failures.get(name, named[name]), "red" if name in result.failures else "")
        )
    console.print(about)
    if result.once:
        console.print(
            Text(f"Called once, since one call takes longer than --seconds: {', '.join(result.once)}.", "dim")
        )
    if result.timing is not None:
        console.print(Text(f"Difference and ratio against {result.base}. {result.timing.method}.", "dim"))


def _measured(result: Bench, timing: Timing, base: str, name: str) -> tuple[Text, ...]:
    low, high = timing.spread(name)
    chosen = name == result.explanation.backend
    label = Text(name, "bold green" if chosen else "")
    p50 = Text(duration(timing.p50(name)), "bold")
    span = Text(f"{duration(low)} to {duration(high)}")
    if name == base:
        return label, p50, span, Text("-", "dim"), Text("1.00", "dim")
    difference = timing.difference(name, base)
    sign = "+" if difference >= 0 else "-"
    return label, p50, span, Text(sign + duration(abs(difference))), Text(f"{timing.ratio(name, base):.2f}")
