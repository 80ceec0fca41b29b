"""How much memory a call takes beyond what was there before it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch._C._profiler import _ExtraFields_Allocation


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
    with torch.autograd.profiler.profile(profile_memory=True, use_kineto=False) as profile:
        result = call()
    live: dict[int, int] = {}
    now = peak = 0
    for address, size in _allocations(profile):
        if size > 0:
            live[address] = size
            now += size
            peak = max(peak, now)
        else:
            # By what was seen allocated here, if anything was: of a block from before the call, the profiler may report
            # a size that it remembers from an earlier use.
            now -= live.pop(address, 0)
    del result
    return Memory(peak, now)


def _allocations(profile: torch.autograd.profiler.profile) -> list[tuple[int, int]]:
    """(address, bytes) of every allocation and, below zero, every release, in order of time.

    The event tree is the only place where torch 2.x gives addresses; torch.profiler's memory timeline reads it too.
    """
    assert profile.kineto_results is not None
    found, events = [], list(profile.kineto_results.experimental_event_tree())
    while events:
        event = events.pop()
        events += event.children
        fields = event.typed[1]
        if isinstance(fields, _ExtraFields_Allocation):
            found.append((event.start_time_ns, fields.ptr, fields.alloc_size))
    return [(address, size) for _, address, size in sorted(found, key=lambda each: each[0])]
