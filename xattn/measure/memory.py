"""How much memory a call takes beyond what was there before it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Memory:
    """Bytes of tensor storage that the call allocated.

    peak: the most that was live at once, the result included.
    kept: what was still live when it returned: the result, and what it saved for the backward pass or for later.
    """

    peak: int
    kept: int


def memory(call: Callable[[], object], device: torch.device | str = "cpu") -> Memory:
    """Run `call` once and account for its memory, a kernel's own buffers included.

    No warm-up: what a first call leaves behind in a cache counts. Call it before if that should not.
    """
    device = torch.device(device)
    if device.type == "cuda":
        return _cuda(call, device)
    if device.type == "cpu":
        return _cpu(call)
    raise ValueError(f"accounts for memory on cpu and cuda alone, not on {device.type}")


def _cuda(call: Callable[[], object], device: torch.device) -> Memory:
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    result = call()
    torch.cuda.synchronize(device)
    peak, after = torch.cuda.max_memory_allocated(device), torch.cuda.memory_allocated(device)
    del result
    return Memory(peak - before, after - before)


def _cpu(call: Callable[[], object]) -> Memory:
    # The allocator reports to the profiler, so that buffers inside a kernel count, which no dispatch mode sees.
    # Memory from before the call that is freed inside it is not reported.
    with torch.autograd.profiler.profile(profile_memory=True, use_kineto=False) as profile:
        result = call()
    live = peak = 0
    assert profile.kineto_results is not None
    for event in profile.kineto_results.events():
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    del result
    return Memory(peak, live)
