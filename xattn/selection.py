"""From a request and a choice of backend to one backend, or to every reason why not."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Mapping, Sequence

import torch

from xattn.errors import SlowBackendWarning, UnknownBackendError, UnsupportedError
from xattn.override import Choice
from xattn.reasons import Reason
from xattn.registry import Entry, registry
from xattn.request import Request

# From this many scores on (64 MiB in float32), `auto` says when it takes a backend that holds them all.
LARGE = 2**24

_warned: set[object] = set()


def candidates(choice: Choice) -> list[str] | None:
    """The backends that a choice allows, in its order; None for "auto", which allows all."""
    if choice == "auto":
        return None
    names: list[str] = []
    for name in (choice,) if isinstance(choice, str) else choice:
        found = registry().names(name)
        if not found:
            raise UnknownBackendError(_unknown(name))
        names += [each for each in found if each not in names]
    if not names:
        raise UnknownBackendError("backend is an empty sequence; name at least one backend")
    return names


def _unknown(name: object) -> str:
    known = sorted({*registry().entries, *(entry.plugin for entry in registry().entries.values())})
    text = f"no backend or plugin is called {name!r}; there are: {', '.join(known) or 'none'}, and auto"
    close = difflib.get_close_matches(str(name), known, n=1)
    if close:
        text += f'. Did you mean "{close[0]}"?'
    for plugin in registry().plugins:
        for failure in plugin.failures:
            text += f"\n  plugin {plugin.name} ({plugin.distribution} {plugin.version}) has a failure: {failure}"
    return text


def entry_reasons(entry: Entry, request: Request) -> list[Reason]:
    """The backend's own reasons, plus the user's: a disabled backend is a reason, not an absence."""
    reasons = entry.backend.reasons(request)
    if entry.disabled_by is not None:
        hint = "Unset it to use this backend."
        return [Reason("disabled", f"by {entry.disabled_by}", "enabled", hint), *reasons]
    return reasons


def select(request: Request, choice: Choice, warn: bool = True) -> Entry:
    """The first backend that can serve the request: in the order of the choice, or of priority for "auto".

    Raises UnsupportedError with every reason of every allowed backend, UnknownBackendError for an unknown name.
    """
    names = candidates(choice)
    entries = registry().ordered(request) if names is None else [registry().entries[name] for name in names]
    rejected: dict[str, Sequence[Reason]] = {}
    for entry in entries:
        reasons = entry_reasons(entry, request)
        if not reasons:
            if warn and names is None:
                _warn_if_slow(entry, request, rejected)
            return entry
        rejected[entry.name] = reasons
    raise UnsupportedError(_rejection(request, rejected), request, rejected)


def _rejection(request: Request, rejected: Mapping[str, Sequence[Reason]]) -> str:
    lines = [f"no backend can serve this call exactly as asked.\n  {request}"]
    for name, reasons in rejected.items():
        lines.append(f"{name} cannot, because:")
        lines += [f"    {reason}" for reason in reasons]
    if not rejected:
        lines.append("No backend is registered; `xattn info` shows what failed to load.")
    return "\n".join(lines)


def _warn_if_slow(entry: Entry, request: Request, rejected: Mapping[str, Sequence[Reason]]) -> None:
    block = entry.backend.block(request)
    if block is None or not block.fallback:
        return
    if torch.compiler.is_compiling() or request.scores < LARGE:
        return
    why = {name: reasons for name, reasons in rejected.items() if all(r.code != "device" for r in reasons)}
    key = (entry.name, tuple((name, tuple(r.code for r in reasons)) for name, reasons in why.items()))
    if key in _warned:
        return
    _warned.add(key)
    text = "; ".join(f"{name}: {', '.join(map(str, reasons))}" for name, reasons in why.items())
    warnings.warn(
        f"xattn takes the slow backend {entry.name!r} for a large problem ({request}). It holds all "
        f"{request.scores:,} scores at once. The faster ones cannot serve it: {text or 'none is installed for this device'}",
        SlowBackendWarning,
        stacklevel=5,
    )
