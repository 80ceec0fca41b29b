"""What the `aiter` backend's plans cost on top of the aiter call that they make: microseconds a call.

aiter is replaced by a function that returns at once what it was made with, so that nothing is left but Python. Adapter
and direct call, which makes the same views by hand, alternate; medians over rounds are compared.

    python benchmarks/rocm_overhead.py
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import xattn_rocm.installation
from torch import Tensor

import xattn
from xattn.devices import emulated
from xattn.registry import registry

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


@dataclass(frozen=True)
class Row:
    """options and tensors: of xattn's call. direct: the vendor's call with the same views made by hand."""

    name: str
    returned: Any
    options: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    direct: Callable[[NoKernel], Any]


def rows() -> Sequence[Row]:
    q, k = torch.zeros(2, 64, 4, 64, dtype=torch.bfloat16), torch.zeros(2, 128, 2, 64, dtype=torch.bfloat16)
    out, lse, sinks = torch.zeros_like(q), torch.zeros(2, 4, 64), torch.zeros(4)
    starts = torch.zeros(3, dtype=torch.int32)
    rest = (None, None, False)

    def varlen(kernel: NoKernel) -> Tensor:
        flat = (q.flatten(0, 1), k.flatten(0, 1), k.flatten(0, 1))
        given = (*flat, starts, starts, 64, 128, 0, 0.0, 0.125, 2.0, True, (-1, -1), *rest, False)
        returned: Tensor = kernel.flash_attn_varlen_func(*given)
        return returned.unflatten(0, (2, 64))

    def dense(kernel: NoKernel, causal: bool = True, with_lse: bool = False) -> Any:
        return kernel.flash_attn_func(q, k, k, 0.0, 0.125, causal, (-1, -1), *rest, with_lse)

    def window(kernel: NoKernel) -> Any:
        return kernel.flash_attn_func(q, k[:, 48:], k[:, 48:], 0.0, 0.125, True, (16, 0), *rest, False)

    def with_sinks(kernel: NoKernel) -> Any:
        return kernel.flash_attn_func(q, k, k, 0.0, 0.125, True, (-1, -1), *rest, False, sink_ptr=sinks)

    causal = {"causal": True}
    return [
        Row("causal", out, causal, {}, dense),
        Row("causal, lse", (out, lse), {**causal, "return_lse": True}, {}, lambda kernel: dense(kernel, with_lse=True)),
        Row("causal, sinks", out, causal, {"sinks": sinks}, with_sinks),
        Row("window, keys cut off", out, {"window": (16, 0)}, {}, window),
        Row("softcap", out.flatten(0, 1), {**causal, "softcap": 2.0}, {}, varlen),
    ]


def overhead(row: Row) -> float:
    """Microseconds of a call that are the adapter's."""
    kernel = install(row.returned)
    q, k = torch.zeros(2, 64, 4, 64, dtype=torch.bfloat16), torch.zeros(2, 128, 2, 64, dtype=torch.bfloat16)
    # What is measured is the backend's own plan, below xattn's guards.
    request = xattn.explain(q, k, k, backend="aiter", **row.options, **row.tensors).request
    run = registry().entries["aiter"].backend.plan(request)
    return median_difference(lambda: run(q, k, k, **row.tensors), lambda: row.direct(kernel))


def main() -> int:
    slow = 0
    for row in rows():
        microseconds = overhead(row)
        slow += microseconds > LIMIT
        print(f"{row.name:24} {microseconds:6.2f} us a call (limit {LIMIT})")
    return int(slow > 0)


if __name__ == "__main__":
    sys.exit(main())
