"""From a described call to its plan: made once, remembered, guarded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.compiler import is_dynamo_compiling

from xattn.dispatch.autocast import under_autocast
from xattn.dispatch.choice import Choice
from xattn.dispatch.guard import Check, Free, guard, kind
from xattn.dispatch.op import Prepared
from xattn.dispatch.results import check_results
from xattn.dispatch.selection import select
from xattn.dispatch.sharded import Sharding, is_sharded, replicated
from xattn.errors import BrokenBackendError
from xattn.plugin.backend import Kernel, Plan
from xattn.plugin.notes import add_note
from xattn.plugin.request import Request
from xattn.plugin.tensors import flat, in_forward_mode, is_plain

# Called with each call that is planned, where somebody records a run: xattn.tune.record.
on_plan: Callable[[Prepared], None] | None = None
# A decode loop over a growing cache makes one key a step; past this many, start anew.
_PLANS_MAX = 4096


@dataclass(frozen=True, repr=False, eq=False)
class Planned:
    """A request, the backend and kernel that serve it, and the plan, with the names of what it takes by keyword, and
    what it does once a step beforehand, where it does."""

    request: Request
    backend: str
    kernel: Kernel[Any]
    run: Plan
    given: tuple[str, ...] = ()
    prepare: Callable[[Any], None] | None = None

    def __call__(self, *tensors: Any, **given: Any) -> Any:
        try:
            return self.run(*tensors, **given)
        except Exception as error:
            self.annotate(error)
            raise

    def first(self, *tensors: Any, **given: Any) -> Any:
        """The first call, whose result is looked at: raises BrokenBackendError."""
        result = self.run(*tensors, **given)
        check_results(result, self.request, tensors, given, self.backend)
        return result

    def annotate(self, error: Exception) -> None:
        """Add to a kernel's error what was asked of whom; xattn's own says it already."""
        if isinstance(error, BrokenBackendError):
            return
        add_note(error, f"raised by xattn's backend {self.backend!r} for {self.request}")
        has_gradients = bool(self.request.vocabulary.grads)
        if isinstance(error, NotImplementedError) and in_forward_mode() and has_gradients:
            add_note(error, 'Derivatives in forward mode, as torch.func.jvp wants them: backend="reference" has them.')


class PlanTable:
    """What one op remembers of its calls.

    A slot is all that decides a plan beside tensors, hashable: options, choice of backend, which optional tensors are
    there. `recent` has the plan last used for each, behind a guard on the tensors: the hit that a model makes in every
    layer, which the op's function looks up by itself. Behind it lie all plans, for calls that alternate between shapes.
    """

    def __init__(self) -> None:
        self.recent: dict[object, tuple[Check, Plan, Planned]] = {}
        self._plans: dict[object, Planned] = {}
        _tables.append(self)

    def find(self, slot: object, tensors: Sequence[Any], free: Free = ()) -> Planned | None:
        """The plan that was made for a call of this kind. free: the dimensions whose sizes no plan depends on."""
        if not _may_be_remembered(slot, tensors):
            return None
        last = self.recent.get(slot)
        if last is not None and last[0](*tensors):
            return last[2]
        planned = self._plans.get((slot, kind(*tensors, free=free)))
        if planned is not None:
            self.recent[slot] = guard(*tensors, free=free), planned.run, planned
        return planned

    def first(self, slot: object, tensors: Sequence[Any], prepared: Prepared, choice: Choice, free: Free = ()) -> Any:
        """Serve a call that `find` does not know. Its plan is remembered, if it may be, once its result was right."""
        planned = make_plan(prepared, choice)
        try:
            result = planned.first(*prepared.tensors, **prepared.given)
        except Exception as error:
            planned.annotate(error)
            raise
        if _may_be_remembered(slot, tensors):
            if len(self._plans) >= _PLANS_MAX:
                self.clear()
            self._plans[slot, kind(*tensors, free=free)] = planned
            self.recent[slot] = guard(*tensors, free=free), planned.run, planned
        return result

    def clear(self) -> None:
        self.recent.clear()
        self._plans.clear()


_tables: list[PlanTable] = []


def clear() -> None:
    """Forget every plan of every op."""
    for table in _tables:
        table.clear()


def _may_be_remembered(slot: object, tensors: Sequence[Any]) -> bool:
    # A plan may hold tensors of its own; made under a mode such as FakeTensorMode they are the mode's.
    if not all(map(is_plain, tensors)) or torch._C._len_torch_dispatch_stack() > 0:
        return False
    try:
        hash(slot)
    except TypeError:  # an option of an illegal type, which describing the call names
        return False
    return True


def make_plan(prepared: Prepared, choice: Choice) -> Planned:
    """Select a kernel and ask it for its plan."""
    if prepared.request.dims and is_sharded(prepared):
        return _sharded_plan(prepared, choice)
    if on_plan is not None and not is_dynamo_compiling():
        on_plan(prepared)
    request = prepared.request
    entry, kernel = select(request, choice)
    try:
        run = kernel.plan(request)
    except Exception as error:
        add_note(error, f"raised by plan() of xattn's backend {entry.name!r}, which had accepted {request}")
        raise
    if not callable(run):
        raise BrokenBackendError(entry.name, f"{type(run).__name__} as its plan", "a callable", request)
    prepare = getattr(run, "prepare", None)
    if is_sharded(prepared):
        run = _of_replicated(run)
    if prepared.autocast is not None:
        device = next(tensor.device.type for tensor in flat(prepared.tensors))
        run = under_autocast(run, prepared.autocast, device, prepared.cast)
    return Planned(request, entry.name, kernel, run, tuple(prepared.given), prepare)


def _of_replicated(run: Plan) -> Plan:
    def run_of_dtensors(*tensors: Any, **given: Any) -> Any:
        return run(*replicated(tensors), **given)

    return run_of_dtensors


def _sharded_plan(prepared: Prepared, choice: Choice) -> Planned:
    """The plan of DTensors, which each rank runs on its own part of them."""
    sharding = Sharding.of(prepared)
    planned = make_plan(sharding.local(prepared), choice)

    def run(*tensors: Any, **given: Any) -> Any:
        mine = sharding.local(replace(prepared, tensors=tensors, given=given))
        return sharding.whole(planned.run(*mine.tensors, **mine.given), prepared.request, tensors)

    return Planned(prepared.request, planned.backend, planned.kernel, run, planned.given)


def traced(prepared: Prepared, choice: Choice) -> Any:
    """Serve a call that torch.compile traces, which leaves no trace in a table."""
    return make_plan(prepared, choice).first(*prepared.tensors, **prepared.given)
