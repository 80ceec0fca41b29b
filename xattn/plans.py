"""From a call to its plan: resolved once, remembered, guarded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_dynamo_compiling

from xattn.arguments import Options, Tensors, check_values, describe
from xattn.backend import Plan
from xattn.errors import add_note
from xattn.guard import Check, guard, is_plain, kind
from xattn.output import Output
from xattn.override import Choice, as_choice
from xattn.request import Request
from xattn.selection import select


@dataclass(frozen=True)
class Resolved:
    """A request, the backend that serves it, and the plan."""

    request: Request
    backend: str
    run: Plan

    def annotate(self, error: Exception) -> None:
        """Add to a kernel's error what was asked of whom."""
        add_note(error, f"raised by xattn's backend {self.backend!r} for {self.request}")


# Two tables. `recent` has the plan last used for each set of options, behind a guard on the tensors: the hit that a
# model makes in every layer. `_plans` has all of them by full key, for calls that alternate between shapes.
recent: dict[object, tuple[Check, Plan, Resolved]] = {}
_plans: dict[object, Resolved] = {}
# A decode loop over a growing cache makes one key a step; past this many, start anew.
_PLANS_MAX = 4096
_GIVEN = object()


_tables: list[dict[Any, Any]] = [recent, _plans]


def table() -> dict[Any, Any]:
    """Another op's table of plans, which `clear` empties as well."""
    _tables.append({})
    return _tables[-1]


def clear() -> None:
    """Forget every plan."""
    for each in _tables:
        each.clear()


def call(q: Tensor, k: Tensor, v: Tensor, options: Options, tensors: Tensors, backend: str | Sequence[str]) -> Output:
    """Serve an eager call that `recent` did not serve at once."""
    check_values(k, tensors)
    choice = as_choice(backend)
    every = (q, k, v, *tensors.values())
    # A plan may hold tensors of its own; made under a mode such as FakeTensorMode they are the mode's.
    if not all(map(is_plain, every)) or torch._C._len_torch_dispatch_stack() > 0:
        return uncached(q, k, v, options, tensors, choice)
    slot = _slot(options, tensors, choice)
    try:
        hash(slot)
    except TypeError:  # an option of an illegal type, which describing the call names
        return uncached(q, k, v, options, tensors, choice)
    last = recent.get(slot)
    if last is not None and last[0](*every):
        return _run(last[2], q, k, v, tensors)
    key = (slot, kind(*every))
    resolved = _plans.get(key)  # one look-up: another thread may clear the table between two
    if resolved is None:
        resolved = resolve(q, k, v, options, tensors, choice)
        if len(_plans) >= _PLANS_MAX:
            clear()
        _plans[key] = resolved
    recent[slot] = guard(*every), resolved.run, resolved
    return _run(resolved, q, k, v, tensors)


def _slot(options: Options, tensors: Tensors, choice: Choice) -> tuple[object, ...]:
    """The key of `recent`: as `attention` spells it, with a mark that no caller has where there is a tensor."""
    window = tuple(options.window) if isinstance(options.window, list) else options.window
    marks = (_GIVEN if name in tensors else None for name in ("sinks", "alibi_slopes", "bias", "mask", "seqlens_k"))
    rest = (options.dropout_p, options.deterministic, options.return_lse, choice)
    return (options.causal, window, options.align, options.scale, options.softcap, *marks, *rest)


def uncached(q: Tensor, k: Tensor, v: Tensor, options: Options, tensors: Tensors, choice: Choice) -> Output:
    """Serve a call that leaves no trace in the tables: compiled ones, and tensors that are no plain tensors."""
    resolved = resolve(q, k, v, options, tensors, choice)
    if is_dynamo_compiling():
        return resolved.run(q, k, v, **tensors)
    return _run(resolved, q, k, v, tensors)


def held(q: Tensor, k: Tensor, v: Tensor, options: Options, tensors: Tensors, choice: Choice) -> Plan:
    """A plan for the caller to keep. Unguarded: the cheapest guard costs twice what the rest of the call does."""
    check_values(k, tensors)
    resolved = resolve(q, k, v, options, tensors, choice)
    run = resolved.run

    def planned(q: Tensor, k: Tensor, v: Tensor) -> Output:
        if is_dynamo_compiling():  # a backend may have another plan for a graph
            return uncached(q, k, v, options, tensors, choice)
        try:
            return run(q, k, v)
        except Exception as error:
            resolved.annotate(error)
            raise

    def planned_with_tensors(q: Tensor, k: Tensor, v: Tensor, **given: Tensor) -> Output:
        if given.keys() != tensors.keys():
            raise TypeError(f"this plan takes the tensors {sorted(tensors)}, got {sorted(given)}")
        if is_dynamo_compiling():
            return uncached(q, k, v, options, given, choice)
        check_values(k, given)
        return _run(resolved, q, k, v, given)

    return planned_with_tensors if tensors else planned


def resolve(q: Tensor, k: Tensor, v: Tensor, options: Options, tensors: Tensors, choice: Choice) -> Resolved:
    """Describe the call, select a backend, make its plan."""
    request = described(q, k, v, options, tensors)
    entry = select(request, choice)
    try:
        run = entry.backend.plan(request)
    except Exception as error:
        add_note(error, f"raised by plan() of xattn's backend {entry.name!r}, which had accepted {request}")
        raise
    dtype = autocast_dtype(q)
    return Resolved(request, entry.name, run if dtype is None else under_autocast(run, dtype, q.device.type))


def described(q: Tensor, k: Tensor, v: Tensor, options: Options, tensors: Tensors) -> Request:
    """The request as a backend sees it: under autocast, in autocast's dtype."""
    dtype = autocast_dtype(q)
    if dtype is not None:
        q, k, v = _cast(q, dtype), _cast(k, dtype), _cast(v, dtype)
    return describe(q, k, v, options, tensors)


def _run(resolved: Resolved, q: Tensor, k: Tensor, v: Tensor, tensors: Tensors) -> Output:
    try:
        return resolved.run(q, k, v, **tensors)
    except Exception as error:
        resolved.annotate(error)
        raise


def autocast_dtype(q: object) -> torch.dtype | None:
    """The dtype that autocast wants, or None outside it. As torch does for its own attention, float64 stays."""
    if not isinstance(q, Tensor):
        return None
    # torch.compile cannot trace is_autocast_available before torch 2.12, and knows every device that it compiles for.
    if not is_dynamo_compiling() and not torch.amp.is_autocast_available(q.device.type):
        return None
    if not torch.is_autocast_enabled(q.device.type):
        return None
    return torch.get_autocast_dtype(q.device.type)


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    if not isinstance(tensor, Tensor) or not tensor.is_floating_point() or tensor.dtype == torch.float64:
        return tensor
    return tensor.to(dtype)


def under_autocast(run: Plan, dtype: torch.dtype, device: str) -> Plan:
    """The plan with the casts done here, once, so that autocast touches nothing inside a backend."""

    def cast_and_run(q: Tensor, k: Tensor, v: Tensor, **tensors: Tensor) -> Output:
        with torch.autocast(device, enabled=False):
            return run(_cast(q, dtype), _cast(k, dtype), _cast(v, dtype), **tensors)

    return cast_and_run
