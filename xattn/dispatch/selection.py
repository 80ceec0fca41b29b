"""From a request and a choice of backend to one kernel, or to every reason why not."""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from xattn.dispatch.choice import Choice, allowed
from xattn.dispatch.failures import is_plugins, raised
from xattn.dispatch.registry import Entry, by_rank, registry
from xattn.errors import BrokenBackendWarning, SlowBackendWarning, UnsupportedError
from xattn.plugin.backend import Kernel
from xattn.plugin.reasons import Reason
from xattn.plugin.request import Request

# From this many scores on (64 MiB in float32), `auto` says when it takes a backend that holds them all.
LARGE = 2**24

# What builds a kernel that `auto` passes over because it is not built.
BUILD = '`xattn tune` builds and measures it; backend="{}" builds it in the first call.'

_warned: set[object] = set()


def forget_warnings() -> None:
    """Warn again of what was warned of once."""
    _warned.clear()


def kernel_reasons(entry: Entry, kernel: Kernel[Any], request: Request) -> list[Reason]:
    """What a kernel says stops it, plus the user's: a disabled backend is a reason, not an absence."""
    reasons = _asked(entry, kernel, request)
    if entry.disabled_by is not None:
        hint = "Unset it to use this backend."
        return [Reason("disabled", f"by {entry.disabled_by}", "enabled", hint), *reasons]
    return reasons


def _asked(entry: Entry, kernel: Kernel[Any], request: Request) -> list[Reason]:
    """The kernel's own reasons. One that fails to answer cannot serve the call, and its failure is the reason: one
    broken plugin neither takes the others down nor goes unseen."""
    try:
        kernel.rank(request)  # `auto` has sorted by it, so its failure counts too
        reasons = kernel.reasons(request)
    except BaseException as error:
        if not is_plugins(error):
            raise
        return [_broken(entry, f"reasons() raised {raised(error)}")]
    if not isinstance(reasons, list) or not all(isinstance(reason, Reason) for reason in reasons):
        # Without addresses: the same answer is the same reason.
        got = re.sub(r" at 0x[0-9a-f]+", "", repr(reasons))
        return [_broken(entry, f"reasons() returned {got:.80}")]
    return reasons


def _broken(entry: Entry, what: str) -> Reason:
    hint = f"Report it to the authors of the plugin {entry.plugin}; XATTN_DISABLE={entry.name} sets it aside."
    return Reason("broken", what, "a list of xattn.Reason", hint)


def without_op(entry: Entry, op: str) -> list[Reason]:
    """What stops a backend that has no kernel of the op."""
    return [Reason("op", op, ", ".join(entry.ops), 'backend="auto" asks those that have it.')]


def backend_reasons(entry: Entry, request: Request) -> tuple[Kernel[Any] | None, list[Reason]]:
    """The backend's kernel for a request; or None, and what stops it."""
    found: list[Reason] | None = None
    for _, kernel in by_rank([(entry, each) for each in entry.kernels(request.op)], request):
        reasons = kernel_reasons(entry, kernel, request)
        if not reasons:
            return kernel, []
        found = closest(found, reasons)
    return None, without_op(entry, request.op) if found is None else found


def closest(one: list[Reason] | None, other: list[Reason]) -> list[Reason]:
    """What stops a backend of several kernels: the reasons of the one that is closest to serving the call. One for the
    call's device is closer than any other, and the fewer the reasons, the more use they are."""
    if one is None:
        return other
    return other if _distance(other) < _distance(one) else one


def _distance(reasons: list[Reason]) -> tuple[bool, int]:
    return reasons[0].code == "device", len(reasons)


def select(request: Request, choice: Choice, planning: bool = True) -> tuple[Entry, Kernel[Any]]:
    """The first kernel that can serve the request: in the order of the choice, or for "auto" in that of measured times
    and priority, those that are built before those that are not.

    planning: False for a question, which warns of nothing and settles nothing.

    Raises UnsupportedError with every reason of every allowed backend, UnknownBackendError for an unknown name.
    """
    names = allowed(choice, request.op)
    rejected: dict[str, list[Reason]] = {}
    if names is not None:
        for name in names:
            entry = registry().entry(name)
            kernel, reasons = backend_reasons(entry, request)
            if kernel is not None:
                return _chosen(entry, kernel, request, rejected, planning, False)
            rejected[name] = reasons
    else:
        from xattn.dispatch.measured import in_order, unbuilt  # not with xattn itself

        waiting: tuple[Entry, Kernel[Any]] | None = None
        for entry, kernel in in_order(request):
            reasons = kernel_reasons(entry, kernel, request)
            if not reasons:
                what = unbuilt(entry, kernel, request, keep=planning)
                if what is None:
                    return _chosen(entry, kernel, request, rejected, planning, True)
                waiting = waiting or (entry, kernel)
                reasons = [Reason("unbuilt", what, "built", BUILD.format(entry.name))]
            rejected[entry.name] = closest(rejected.get(entry.name), reasons)
        if waiting is not None:  # better late than not at all
            return _chosen(*waiting, request, rejected, planning, True)
    raise UnsupportedError(_rejection(request, names, rejected), request, rejected)


def _chosen(
    entry: Entry,
    kernel: Kernel[Any],
    request: Request,
    rejected: Mapping[str, Sequence[Reason]],
    planning: bool,
    by_auto: bool,
) -> tuple[Entry, Kernel[Any]]:
    if planning and not torch.compiler.is_compiling():
        _warn_if_broken(rejected)
        if by_auto:
            _warn_if_slow(entry, kernel, request, rejected)
    return entry, kernel


def _rejection(request: Request, names: Sequence[str] | None, rejected: Mapping[str, Sequence[Reason]]) -> str:
    who = "no backend can" if names is None else f"the choice of backend ({', '.join(names)}) cannot"
    lines = [f"{who} serve this call exactly as asked.\n  {request}"]
    for name, reasons in rejected.items():
        lines.append(f"{name} cannot, because:")
        lines += [f"    {reason}" for reason in reasons]
    if names is not None:
        others = [entry for name, entry in registry().entries.items() if name not in names]
        able = [entry.name for entry in others if backend_reasons(entry, request)[0] is not None]
        lines.append(f"Not asked, and able: {', '.join(able) or 'none'}.")
    elif not rejected:
        lines.append("No backend is registered; `xattn info` shows what failed to load.")
    return "\n".join(lines)


def _warn_if_broken(rejected: Mapping[str, Sequence[Reason]]) -> None:
    for name, reasons in rejected.items():
        # One that is also disabled has that reason first, and its user knows.
        if reasons[0].code == "broken" and name not in _warned:
            _warned.add(name)
            text = f"xattn goes on without the backend {name!r}: {reasons[0]}"
            _warn(text, BrokenBackendWarning)


def _warn_if_slow(
    entry: Entry, kernel: Kernel[Any], request: Request, rejected: Mapping[str, Sequence[Reason]]
) -> None:
    block = kernel.block(request)
    if block is None or not block.fallback or request.scores < LARGE:
        return
    why = {name: reasons for name, reasons in rejected.items() if all(r.code != "device" for r in reasons)}
    key = (entry.name, tuple((name, tuple(r.code for r in reasons)) for name, reasons in why.items()))
    if key in _warned:
        return
    _warned.add(key)
    text = "; ".join(f"{name}: {', '.join(map(str, reasons))}" for name, reasons in why.items())
    text = text or "none is installed for this device"
    _warn(
        f"xattn takes the slow backend {entry.name!r} for a large problem ({request}). It holds all "
        f"{request.scores:,} scores at once. The faster ones cannot serve it: {text}",
        SlowBackendWarning,
    )


def _warn(text: str, category: type[Warning]) -> None:
    """Warn of the line that called xattn. How many frames of xattn's own lie in between depends on the way here."""
    frame, level = sys._getframe().f_back, 2
    while frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] == "xattn":
        frame, level = frame.f_back, level + 1
    warnings.warn(text, category, stacklevel=level)
