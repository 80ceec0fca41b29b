"""Two calls that take turns, for benchmarks of what one costs on top of the other."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

ROUNDS, CALLS = 301, 100


def median_difference(adapter: Callable[[], Any], direct: Callable[[], Any]) -> float:
    """Microseconds a call, of medians of rounds that take turns."""
    taken: tuple[list[float], list[float]] = ([], [])
    for _ in range(ROUNDS):
        for times, run in zip(taken, (adapter, direct), strict=True):
            started = time.perf_counter()
            for _ in range(CALLS):
                run()
            times.append((time.perf_counter() - started) / CALLS * 1e6)
    return statistics.median(taken[0]) - statistics.median(taken[1])
