"""One call on every backend that can serve it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from xattn.dispatch.failures import raised
from xattn.dispatch.op import Op, Prepared
from xattn.dispatch.registry import registry
from xattn.dispatch.selection import LARGE, backend_reasons
from xattn.dispatch.tables.format import Row, Time
from xattn.dispatch.tables.kind import Kind, kind_of
from xattn.explain import explain_request
from xattn.measure import alternate, once
from xattn.measure.timing import Mode
from xattn.plugin.tensors import flat
from xattn.tune.fill import filled
from xattn.tune.storing import now

# What takes this many times as long as the fastest is called a few times and no more.
HOPELESS = 10.0


@dataclass(frozen=True)
class Call:
    """A call to measure: in words, and its arguments by name, with tensors that have no data."""

    words: str
    op: Op
    arguments: Mapping[str, Any]
    prepared: Prepared

    @property
    def kind(self) -> Kind:
        kind = kind_of(self.prepared.request)
        assert kind is not None  # its sizes are numbers
        return kind

    def able(self) -> dict[str, str]:
        """The kernel of each backend that is worth measuring. One that holds the whole score matrix of a large problem
        is not."""
        told = explain_request(self.prepared.request)
        able = {each.name: each.kernel for each in told.candidates if not each.reasons}
        if told.request.scores >= LARGE:
            able = {name: kernel for name, kernel in able.items() if not self._is_fallback(name)}
        return able

    def _is_fallback(self, name: str) -> bool:
        kernel, _ = backend_reasons(registry().entries[name], self.prepared.request)
        block = None if kernel is None else kernel.block(self.prepared.request)
        return block is not None and block.fallback


@dataclass(frozen=True)
class Measured:
    """The row of a call, None where nothing could be timed; and how backends failed, by name."""

    row: Row | None
    failures: Mapping[str, str] = field(default_factory=dict)


def measure(call: Call, able: Mapping[str, str], device: torch.device, mode: Mode, seconds: float) -> Measured:
    """Time a call on backends, for about so many seconds after the first calls. able: as `Call.able`."""
    try:
        runs = _runs(call, able, device)
    except Exception as error:  # too large for this device, or nobody knows the values of a tensor
        return Measured(None, {"its tensors": raised(error).splitlines()[0]})
    took: dict[str, float] = {}
    failures: dict[str, str] = {}
    for name, run in runs.items():
        # Whatever a vendor's kernel raises is a line of the report, and the others are measured all the same.
        try:
            once(run, device, mode)  # which may compile
            took[name] = alternate({name: run}, device=device, mode=mode, rounds=1).p50(name)
        except Exception as error:
            failures[name] = raised(error).splitlines()[0]
    if not took:
        return Measured(None, failures)
    near = {name: runs[name] for name, us in took.items() if us <= HOPELESS * min(took.values())}
    timing = alternate(near, device=device, mode=mode, seconds=seconds)
    times = {name: Time(us, us, us, able[name]) for name, us in took.items()}
    for name in near:
        times[name] = Time(timing.p50(name), *timing.spread(name), able[name])
    return Measured(Row(call.kind, call.words, now(), times), failures)


def _runs(call: Call, names: Iterable[str], device: torch.device) -> dict[str, Callable[[], object]]:
    """The call by each backend, with the same tensors; forward and backward together where a gradient is wanted."""
    arguments = filled(call.arguments, device)
    leaves = [tensor for tensor in flat(list(arguments.values())) if tensor.requires_grad]

    def run_of(name: str) -> Callable[[], object]:
        def forward() -> Any:
            return call.op.function(**arguments, backend=name)

        def without_gradient() -> None:
            with torch.no_grad():
                forward()

        def both() -> None:
            answer = forward()
            outputs = flat([answer] if isinstance(answer, torch.Tensor) else list(answer))
            outputs = [each for each in outputs if each.requires_grad]
            torch.autograd.grad(outputs, leaves, [torch.ones_like(each) for each in outputs], allow_unused=True)

        return both if leaves else without_gradient

    return {name: run_of(name) for name in names}
