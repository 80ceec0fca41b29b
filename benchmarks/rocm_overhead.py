"""What the `aiter` backend's plans cost on top of the aiter call that they make: microseconds a call.

aiter is replaced by a function that returns at once what it was made with, so that nothing is left but Python. Adapter
and direct call alternate, and medians over rounds are compared.

    python benchmarks/rocm_overhead.py
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import xattn_rocm.installation
from torch import Tensor

import xattn
from xattn.devices import emulated

LIMIT = 2.0
ROUNDS, CALLS = 301, 200
ARCH = "gfx942"


class NoKernel:
    """The vendor's functions, which compute nothing."""

    def __init__(self, returned: Any) -> None:
        self._returned = returned

    def flash_attn_func(self, *arguments: Any, **named: Any) -> Any:
        return self._returned

    flash_attn_varlen_func = flash_attn_func


def install(returned: Any) -> NoKernel:
    kernel = NoKernel(returned)
    module = ModuleType("aiter")
    module.__dict__.update(flash_attn_func=kernel.flash_attn_func, flash_attn_varlen_func=kernel.flash_attn_varlen_func)
    sys.modules["aiter"] = module
    xattn_rocm.installation.overridden = xattn_rocm.installation.Installation(Path(), "0.1.21", "attention")
    emulated["cpu"] = ("rocm", ARCH)
    return kernel


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


def _direct(kernel: NoKernel, q: Tensor, k: Tensor, v: Tensor, with_lse: bool) -> Callable[[], Any]:
    given = (q, k, v, 0.0, 0.125, True, (-1, -1), None, None, False, with_lse)
    return lambda: kernel.flash_attn_func(*given)


def rows() -> Sequence[tuple[str, float]]:
    """(what is called, microseconds of it that are the adapter's)."""
    q, k = torch.zeros(2, 64, 4, 64, dtype=torch.bfloat16), torch.zeros(2, 64, 2, 64, dtype=torch.bfloat16)
    out, lse = torch.zeros_like(q), torch.zeros(2, 4, 64)
    sinks = torch.zeros(4)
    measured = []
    for name, options, tensors in (
        ("causal", {}, {}),
        ("causal, lse", {"return_lse": True}, {}),
        ("causal, sinks", {}, {"sinks": sinks}),
    ):
        with_lse = bool(options)
        kernel = install((out, lse) if with_lse else out)
        # xattn.plan checks what it is given; what is measured is the backend's own plan.
        request = xattn.explain(q, k, k, causal=True, backend="aiter", **options, **tensors).request
        run = xattn.registry.registry().entries["aiter"].backend.plan(request)
        adapter = lambda run=run, tensors=tensors: run(q, k, k, **tensors)  # noqa: E731
        measured.append((name, median_difference(adapter, _direct(kernel, q, k, k, with_lse))))
    return measured


def main() -> int:
    slow = 0
    for name, microseconds in rows():
        slow += microseconds > LIMIT
        print(f"{name:20} {microseconds:6.2f} us a call (limit {LIMIT})")
    return int(slow > 0)


if __name__ == "__main__":
    sys.exit(main())
