"""From a described call to its plan: made once, remembered, guarded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_dynamo_compiling

from xattn.dispatch.autocast import under_autocast
from xattn.dispatch.choice import Choice
from xattn.dispatch.guard import Check, Free, guard, kind
from xattn.dispatch.op import Op, Prepared
from xattn.dispatch.results import check_results
from xattn.dispatch.selection import select
from xattn.dispatch.sharded import Sharding, is_sharded, replicated
from xattn.errors import BrokenBackendError, InvalidArgumentError
from xattn.plugin.backend import Plan
from xattn.plugin.notes import add_note
from xattn.plugin.request import Request
from xattn.plugin.symbolic import is_int32
from xattn.plugin.tensors import flat, in_forward_mode, is_plain

_INT_MIN, _INT_MAX = -(2**31), 2**31 - 1
# Called with each call that is planned, where somebody records a run: xattn.tune.record.
on_plan: Callable[[Prepared], None] | None = None
# A decode loop over a growing cache makes one key a step; past this many, start anew.
_PLANS_MAX = 4096


@dataclass(frozen=True)
class Planned:
    """A request, the backend that serves it, and the plan, with the names of what it takes by keyword."""

    request: Request
    backend: str
    run: Plan
    given: tuple[str, ...] = ()

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
    if is_sharded(prepared):
        run = _of_replicated(run)
    if prepared.autocast is not None:
        device = next(tensor.device.type for tensor in flat(prepared.tensors))
        run = under_autocast(run, prepared.autocast, device, prepared.cast)
    return Planned(request, entry.name, run, tuple(prepared.given))


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

    return Planned(prepared.request, planned.backend, run, planned.given)


def traced(prepared: Prepared, choice: Choice) -> Any:
    """Serve a call that torch.compile traces, which leaves no trace in a table."""
    return make_plan(prepared, choice).first(*prepared.tensors, **prepared.given)


def held_plan(op: Op, prepared: Prepared, choice: Choice) -> Plan:
    """A plan for the caller to keep. Unguarded: the cheapest guard costs twice what the rest of the call does."""
    planned = make_plan(prepared, choice)
    options, count = prepared.options, len(prepared.given)
    ints = [name for name, value in prepared.given.items() if not isinstance(value, Tensor)]
    by_name = [name for name in prepared.given if name not in ints]
    run: Plan

    def first(*tensors: Any, **given: Any) -> Any:
        nonlocal run
        try:
            result = planned.first(*tensors, **given)
        except BrokenBackendError:
            # A plan does not look at its tensors. Of others than it was made for it returns others, as it should.
            other = op.prepare(*tensors, **given, **options).request
            if other.results(tensors) == planned.request.results(tensors):
                raise
            raise InvalidArgumentError("tensors", other, f"those of the plan, {planned.request}") from None
        run = planned.run
        return result

    run = first

    def run_plan(*tensors: Any) -> Any:
        if is_dynamo_compiling():  # a kernel may have another plan for a graph
            return traced(op.prepare(*tensors, **options), choice)
        try:
            return run(*tensors)
        except Exception as error:
            planned.annotate(error)
            raise

    def run_plan_of_three(a: Any, b: Any, c: Any) -> Any:  # the same, spelt out: `*tensors` costs 0.1 us
        if is_dynamo_compiling():
            return traced(op.prepare(a, b, c, **options), choice)
        try:
            return run(a, b, c)
        except Exception as error:
            planned.annotate(error)
            raise

    def run_plan_with_given(*tensors: Any, **given: Any) -> Any:
        if is_dynamo_compiling():
            _check_given(given, prepared.given)
            return traced(op.prepare(*tensors, **given, **options), choice)
        # What is usual is spelt out: a function called for each name costs twice what the rest does.
        if len(given) != count:
            _check_given(given, prepared.given)
        for name in ints:
            value = given.get(name)
            if type(value) is not int or not _INT_MIN <= value <= _INT_MAX:
                _check_given(given, prepared.given)
        for name in by_name:
            if type(given.get(name)) is not Tensor:
                _check_given(given, prepared.given)
        if op.check_values is not None:
            op.check_values(*tensors, **given)
        try:
            return run(*tensors, **given)
        except Exception as error:
            planned.annotate(error)
            raise

    if prepared.given:
        return run_plan_with_given
    return run_plan_of_three if len(prepared.tensors) == 3 else run_plan


def _check_given(given: Mapping[str, Any], made_with: Mapping[str, Any]) -> None:
    """What a held plan takes by name is what it was made with, and of the same kind: a tensor, or an int, which no
    kernel has to look at."""
    if given.keys() != made_with.keys():
        raise TypeError(f"this plan takes {sorted(made_with)} by name, got {sorted(given)}")
    for name, value in given.items():
        if isinstance(made_with[name], Tensor):
            fits, want = isinstance(value, Tensor), "a torch.Tensor"
        else:
            fits, want = is_int32(value), "an int of 32 bits"
        if not fits:
            got = f"a {type(value).__name__}" if isinstance(value, Tensor) else f"{value!r:.60}"
            raise InvalidArgumentError(name, got, f"{want}, as the plan was made with")
