"""Ways to make a call that change nothing about its results, of whatever op: on memory that held another call's values,
from other threads, in other grad modes, compiled, replayed from a CUDA graph."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from xattn_conformance.ops.base import Run, Variation, Way
from xattn_conformance.ops.call import Call, Execute

Manner = Literal["refilled", "thread", "threads", "no_grad", "inference", "compiled", "graph"]

_THREADS = 4
_ROUNDS = 3


def other_values(call: Call) -> Call:
    """The same request on other values: half of each float and of each length, which every dtype holds and every
    argument may be, and the reverse of a mask. Other integers are places, and stay, as does what the op writes to."""

    def other(name: str, tensor: Tensor) -> Tensor:
        if name in call.writes:
            return tensor
        if tensor.is_floating_point():
            return tensor / 2
        if tensor.dtype == torch.bool:
            return ~tensor
        return tensor // 2 if name == "seqlens_k" else tensor.clone()

    def others(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: other(name, each) for name, each in tensors.items()}

    return replace(call, tensors=others(call.tensors), incoming=others(call.incoming))


def refilled(call: Call, run: Run) -> dict[str, Tensor]:
    """First on other values; then these take their place in the same memory."""
    other = other_values(call)
    before = run(other)
    for there, values in ((other.tensors, call.tensors), (other.incoming, call.incoming)):
        for name, tensor in there.items():
            tensor.copy_(values[name])
    found = run(other)
    if any(torch.equal(found[name], before[name]) for name in call.writes or found):  # it looked at neither
        return {name: torch.full_like(tensor, torch.nan) for name, tensor in found.items()}
    return found


def in_a_thread(call: Call, run: Run) -> dict[str, Tensor]:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(run, call).result()


def in_threads(call: Call, run: Run) -> dict[str, Tensor]:
    """Several at once: half of the threads make the call, the others one on other values. The first result that differs
    from the others is the one that counts."""
    other = other_values(call)
    with ThreadPoolExecutor(_THREADS) as pool:
        asked = [pool.submit(run, each) for _ in range(_ROUNDS) for each in (call, other)]
        found = [future.result() for future in asked][::2]
    first = found[0]
    odd = [each for each in found if any(not torch.equal(each[name], first[name]) for name in first)]
    return odd[0] if odd else first


def without_grad(call: Call, run: Run) -> dict[str, Tensor]:
    """Tensors that require gradients, under no_grad, which `Call.run` sets where none are asked for."""
    leaves = {n: t.clone().requires_grad_() if n in ("q", "k", "v") else t for n, t in call.tensors.items()}
    return run(replace(call, tensors=leaves, wanted=(), incoming={}))


def in_inference_mode(call: Call, run: Run) -> dict[str, Tensor]:
    with torch.inference_mode():
        tensors = {name: each if name in call.writes else each.clone() for name, each in call.tensors.items()}
        found = run(replace(call, tensors=tensors))
    return {name: tensor.clone() for name, tensor in found.items()}


def compiled(call: Call, run: Run) -> dict[str, Tensor]:
    """Traced by torch.compile, with nothing else done to the graph."""

    def around(execute: Execute) -> Execute:
        traced: Execute = torch.compile(execute, backend="aot_eager", dynamic=False)
        return traced

    torch.compiler.reset()
    return run(call, around=around)


def replayed(call: Call, run: Run) -> dict[str, Tensor]:
    """Captured on other values, and replayed on these."""
    return run(call, around=partial(_captured, writes=call.writes))


def _captured(execute: Execute, writes: tuple[str, ...]) -> Execute:
    def replay(op: str, arguments: Any, backend: str) -> Any:
        read = [name for name, each in arguments.items() if isinstance(each, Tensor) and name not in writes]
        held = {**arguments, **{name: arguments[name].clone() for name in read}}
        # What is on the device may not be looked at in a capture.
        held.pop("check", None)
        before = {name: arguments[name].clone() for name in writes}
        floats = [name for name in read if held[name].is_floating_point()]
        for name in floats:
            held[name] /= 2
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(2):
                execute(op, held, backend)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            found = execute(op, held, backend)
        for name in floats:
            held[name].copy_(arguments[name])
        for name in writes:
            held[name].copy_(before[name])
        graph.replay()
        return found

    return replay


MANNERS: dict[str, tuple[str, Way]] = {
    "refilled": ("in the same memory after a call on other values", refilled),
    "thread": ("called from another thread", in_a_thread),
    "threads": ("called from several threads at once", in_threads),
    "no_grad": ("under no_grad with tensors that require gradients", without_grad),
    "inference": ("in inference mode", in_inference_mode),
    "compiled": ("under torch.compile", compiled),
    "graph": ("replayed from a CUDA graph", replayed),
}


def variation(name: str, call: Call) -> Variation:
    said, way = MANNERS[name]
    return Variation(said, (call,), lambda found: dict(found[0]), way)


def missing(name: str, device: str, executor: str) -> str:
    """Why there is no such way here, as a code; "" where there is. executor: of the profile."""
    if name == "graph" and device.partition(":")[0] != "cuda":
        return "device"
    # What an executor runs is not torch's to trace, or to capture.
    return "executor" if name in ("compiled", "graph") and executor else ""
