"""Time several ways to do the same, so that what disturbs one of them disturbs all."""

from __future__ import annotations

import gc
import math
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch

from xattn.plugin.devices import card

# What to time, by name.
Candidates = Mapping[str, Callable[[], object]]
OnRound = Callable[[int, int], None]

WARM_UP_ROUNDS = 3
# Of the time there is, what the warm-up may take before it ends early.
WARM_UP_SHARE = 0.25
MIN_ROUNDS = 3
MAX_ROUNDS = 20_000
# Zeroed before each call on a GPU: empties the L2 cache, and keeps the GPU busy while the CPU issues the call, so that
# the events around it measure the GPU and not the launch. Several times, where the CPU takes long.
FLUSH_BYTES = 512 * 2**20
MOST_FLUSHES = 16
# Calls in a row, of which "eager" is the mean.
EAGER_CALLS = 10

# Whose time a GPU's is: its own alone, or that of a program that issues one call after the other.
Mode = Literal["device", "eager"]


@dataclass(frozen=True)
class Timing:
    """Microseconds by candidate and round, and how they were taken."""

    samples: Mapping[str, Sequence[float]]
    method: str

    def p50(self, name: str) -> float:
        return statistics.median(self.samples[name])

    def spread(self, name: str) -> tuple[float, float]:
        """The 10th and the 90th percentile, in microseconds."""
        ordered = sorted(self.samples[name])
        last = len(ordered) - 1
        return ordered[round(0.1 * last)], ordered[round(0.9 * last)]

    def difference(self, name: str, base: str) -> float:
        """Median over the rounds of `name` minus `base`, in microseconds."""
        return statistics.median(a - b for a, b in zip(self.samples[name], self.samples[base], strict=True))

    def ratio(self, name: str, base: str) -> float:
        """Median over the rounds of `name` divided by `base`."""
        return statistics.median(a / b for a, b in zip(self.samples[name], self.samples[base], strict=True))

    def as_dict(self, base: str) -> dict[str, Any]:
        """The summary against one candidate, without the samples."""
        rows = {}
        for name in self.samples:
            low, high = self.spread(name)
            rows[name] = {
                "p50_us": self.p50(name),
                "p10_us": low,
                "p90_us": high,
                "difference_us": self.difference(name, base),
                "ratio": self.ratio(name, base),
            }
        return {"base": base, "candidates": rows, "method": self.method}


def alternate(
    candidates: Candidates,
    *,
    device: torch.device | str = "cpu",
    mode: Mode = "device",
    seconds: float = 2.0,
    rounds: int | None = None,
    on_round: OnRound | None = None,
) -> Timing:
    """Time each candidate once a round, in an order that rotates, all in this thread.

    device:   whose time it is: "cpu" by time.perf_counter_ns, "cuda" (NVIDIA and ROCm) by events in the stream.
    mode:     "eager" is on a GPU the time from call to call, by the clock of the CPU, which issues EAGER_CALLS of each
              in a row. On the CPU both are the same.
    seconds:  how long to go on, about, warm-up included; at least MIN_ROUNDS, at most MAX_ROUNDS rounds.
    rounds:   their number, instead of `seconds`.
    on_round: called as (rounds done, rounds in all) between rounds, never inside what is timed.

    Torch has one CPU thread meanwhile, Python's garbage collector is off, the first rounds are thrown away.
    Raises ValueError for another device, and whatever a candidate raises.
    """
    device = torch.device(device)
    measure = _measure(device, mode)
    names = list(candidates)
    samples: dict[str, list[float]] = {name: [] for name in names}
    with _quiet():
        start = last = time.perf_counter()
        # The very first call of a candidate may load or compile: the shortest round is the estimate.
        one = math.inf
        for _ in range(WARM_UP_ROUNDS):
            measure(candidates, names)
            now = time.perf_counter()
            one, last = min(one, now - last), now
            if rounds is None and now - start > WARM_UP_SHARE * seconds:
                break
        if rounds is None:
            rounds = max(MIN_ROUNDS, min(MAX_ROUNDS, int((seconds - (last - start)) / one)))
        orders = [names[first:] + names[:first] for first in range(len(names))]
        for done in range(rounds):
            for name, microseconds in measure(candidates, orders[done % len(orders)]).items():
                samples[name].append(microseconds)
            if on_round is not None:
                on_round(done + 1, rounds)
    return Timing(samples, _method(device, mode, rounds, len(names)))


def once(candidate: Callable[[], object], device: torch.device | str = "cpu", mode: Mode = "device") -> float:
    """Microseconds of one call, taken as `alternate` takes them. Raises as it does."""
    device = torch.device(device)
    with _quiet():
        return _measure(device, mode)({"": candidate}, ("",))[""]


def _measure(device: torch.device, mode: Mode) -> Callable[[Candidates, Sequence[str]], dict[str, float]]:
    """Times a round of candidates in the order given."""
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"times calls on cpu and cuda alone, not on {device.type}")
    if device.type == "cpu":
        return _cpu_round
    return _CudaRounds(device) if mode == "device" else _EagerRounds(device)


def _cpu_round(candidates: Candidates, order: Sequence[str]) -> dict[str, float]:
    clock = time.perf_counter_ns
    taken = {}
    for name in order:
        call = candidates[name]
        start = clock()
        call()
        taken[name] = (clock() - start) / 1e3
    return taken


class _CudaRounds:
    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.flush = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device=device)
        # Microseconds that the CPU took to issue a call, the least seen; the first may have compiled.
        self.issued: dict[str, float] = {}
        with torch.cuda.device(device):
            self.one_flush = self._flushed()

    def _flushed(self) -> float:
        """Microseconds of a flush."""
        marks = [_event() for _ in range(3)]
        for mark in marks:
            self.flush.zero_()
            mark.record()
        torch.cuda.synchronize()
        return float(marks[1].elapsed_time(marks[2])) * 1e3

    def _flushes(self, name: str) -> int:
        """How many keep the GPU busy for as long as the CPU takes, and half as long again."""
        return min(1 + int(1.5 * self.issued.get(name, 0.0) / self.one_flush), MOST_FLUSHES)

    def __call__(self, candidates: Candidates, order: Sequence[str]) -> dict[str, float]:
        marks = {}
        with torch.cuda.device(self.device):
            for name in order:
                start, stop = _event(), _event()
                for _ in range(self._flushes(name)):
                    self.flush.zero_()
                start.record()
                clock = time.perf_counter_ns()
                candidates[name]()
                took = (time.perf_counter_ns() - clock) / 1e3
                stop.record()
                self.issued[name] = min(took, self.issued.get(name, math.inf))
                marks[name] = start, stop
            torch.cuda.synchronize()
        return {name: start.elapsed_time(stop) * 1e3 for name, (start, stop) in marks.items()}


class _EagerRounds:
    def __init__(self, device: torch.device) -> None:
        self.device = device

    def __call__(self, candidates: Candidates, order: Sequence[str]) -> dict[str, float]:
        taken = {}
        for name in order:
            call = candidates[name]
            torch.cuda.synchronize(self.device)
            start = time.perf_counter_ns()
            for _ in range(EAGER_CALLS):
                call()
            torch.cuda.synchronize(self.device)
            taken[name] = (time.perf_counter_ns() - start) / 1e3 / EAGER_CALLS
        return taken


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)


@contextmanager
def _quiet() -> Iterator[None]:
    """One thread, no garbage collection."""
    threads, collecting = torch.get_num_threads(), gc.isenabled()
    torch.set_num_threads(1)
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        if collecting:
            gc.enable()


def clock(device: torch.device, mode: Mode) -> str:
    """How a call is timed, in words."""
    if device.type == "cpu":
        return "perf_counter_ns around each call, 1 thread"
    if mode == "eager":
        return f"perf_counter_ns around {EAGER_CALLS} calls in a row and a wait for the GPU"
    return f"CUDA events around each call, {FLUSH_BYTES // 2**20} MiB zeroed before each"


def _method(device: torch.device, mode: Mode, rounds: int, candidates: int) -> str:
    together = "alone" if candidates == 1 else f"{candidates} candidates alternating in one process, order rotating"
    return (
        f"{together}; {clock(device, mode)}, garbage collector off; medians of {rounds} rounds, differences and ratios "
        f"taken in each round; torch {torch.__version__}, Python {platform.python_version()}, {card(device)}"
    )
