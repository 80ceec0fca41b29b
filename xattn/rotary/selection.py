"""From a request and a choice of backend to the plan that rotates, or to every reason why not."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from dataclasses import dataclass

from torch.compiler import is_compiling

from xattn.backend import Backend
from xattn.errors import BrokenBackendWarning, UnsupportedError, add_note
from xattn.override import Choice
from xattn.reasons import Reason
from xattn.registry import Entry, registry
from xattn.rotary import plain
from xattn.rotary.request import RotaryRequest
from xattn.selection import answer, candidates

Plan = Callable[..., plain.Rotated]

_warned: set[str] = set()


@dataclass(frozen=True)
class Resolved:
    """A request, who serves it, and how. run(q, k, cos, sin) returns both, rotated."""

    request: RotaryRequest
    backend: str
    run: Plan

    def annotate(self, error: Exception) -> None:
        """Add to a kernel's error what was asked of whom."""
        add_note(error, f"raised by xattn's backend {self.backend!r} for {self.request}")


def serves(backend: Backend) -> bool:
    """Whether a backend has the op at all."""
    return type(backend).rotary_plan is not Backend.rotary_plan


def entry_reasons(entry: Entry, request: RotaryRequest) -> list[Reason]:
    """The backend's own reasons, and the user's."""
    return answer(entry, "rotary_reasons", lambda: entry.backend.rotary_reasons(request))


def resolve(request: RotaryRequest, choice: Choice) -> Resolved:
    """The first of the choice that can; for "auto" the first by priority, and plain PyTorch where none can.

    Raises UnsupportedError with every reason, UnknownBackendError for an unknown name.
    """
    names = candidates(choice)
    entries = _ordered(request) if names is None else [registry().entries[name] for name in names]
    rejected: dict[str, list[Reason]] = {}
    for entry in entries:
        rejected[entry.name] = entry_reasons(entry, request)
        if not rejected[entry.name]:
            return Resolved(request, entry.name, _plan(entry, request))
        if names is None:
            _warn_if_broken(entry.name, rejected[entry.name])
    if names is None:
        return Resolved(request, "plain PyTorch", plan(request))
    lines = [f"the choice of backend ({', '.join(names)}) cannot serve this call exactly as asked.\n  {request}"]
    for name, reasons in rejected.items():
        lines.append(f"{name} cannot, because:")
        lines += [f"    {reason}" for reason in reasons]
    raise UnsupportedError("\n".join(lines), request, rejected)


def plan(request: RotaryRequest) -> Plan:
    """The plain one."""
    return functools.partial(plain.apply, interleaved=request.interleaved)


def _ordered(request: RotaryRequest) -> list[Entry]:
    """Those that have the op, in the order in which `auto` takes them for attention on this device."""
    return sorted(
        (entry for entry in registry().entries.values() if serves(entry.backend)),
        key=lambda entry: _priority(entry, request),
        reverse=True,
    )


def _priority(entry: Entry, request: RotaryRequest) -> int:
    block = entry.backend.block(request)
    return -1 if block is None else block.priority["default"]


def _plan(entry: Entry, request: RotaryRequest) -> Plan:
    try:
        return entry.backend.rotary_plan(request)
    except Exception as error:
        add_note(error, f"raised by rotary_plan() of xattn's backend {entry.name!r}, which had accepted {request}")
        raise


def _warn_if_broken(name: str, reasons: list[Reason]) -> None:
    if is_compiling() or name in _warned or reasons[0].code != "broken":
        return
    _warned.add(name)
    text = f"xattn rotates without the backend {name!r}: {reasons[0]}"
    warnings.warn(text, BrokenBackendWarning, stacklevel=6)
