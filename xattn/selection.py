"""From a request and a choice of backend to one backend, or to every reason why not."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence

import torch

from xattn import override
from xattn.errors import BrokenBackendWarning, SlowBackendWarning, UnknownBackendError, UnsupportedError
from xattn.override import Choice
from xattn.reasons import Reason
from xattn.registry import STRANGER, Entry, raised, registry
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
            raise UnknownBackendError(_unknown(name, choice))
        names += [each for each in found if each not in names]
    if not names:
        raise UnknownBackendError("backend is an empty sequence; name at least one backend")
    return names


def _unknown(name: str, choice: Choice) -> str:
    source = "XATTN_BACKEND: " if choice == override.environment else ""
    if name == "auto":
        return f'{source}"auto" stands for every backend, so it stands alone: in a sequence, name the backends'
    return "\n".join([source + registry().unknown(name), *registry().problems()])


def entry_reasons(entry: Entry, request: Request) -> list[Reason]:
    """The backend's own reasons, plus the user's."""

    def ask() -> object:
        entry.rank(request)  # `auto` has sorted by it, so its failure counts too
        return entry.backend.reasons(request)

    return answer(entry, "reasons", ask)


def answer(entry: Entry, method: str, ask: Callable[[], object]) -> list[Reason]:
    """What a backend's method says stops it, plus the user's: a disabled backend is a reason, not an absence."""
    reasons = _asked(entry, method, ask)
    if entry.disabled_by is not None:
        hint = "Unset it to use this backend."
        return [Reason("disabled", f"by {entry.disabled_by}", "enabled", hint), *reasons]
    return reasons


def _asked(entry: Entry, method: str, ask: Callable[[], object]) -> list[Reason]:
    """The backend's own reasons. A backend that fails to answer cannot serve the call, and its failure is the reason:
    one broken plugin neither takes the others down nor goes unseen."""
    try:
        reasons = ask()
    except STRANGER as error:
        return [_broken(entry, f"{method}() raised {raised(error)}")]
    if not isinstance(reasons, list) or not all(isinstance(reason, Reason) for reason in reasons):
        return [_broken(entry, f"{method}() returned {reasons!r:.80}")]
    return reasons


def _broken(entry: Entry, what: str) -> Reason:
    hint = f"Report it to the authors of the plugin {entry.plugin}; XATTN_DISABLE={entry.name} sets it aside."
    return Reason("broken", what, "a list of xattn.Reason", hint)


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
            if warn:
                _warn_if_broken(rejected)
            if warn and names is None:
                _warn_if_slow(entry, request, rejected)
            return entry
        rejected[entry.name] = reasons
    raise UnsupportedError(_rejection(request, names, rejected), request, rejected)


def _rejection(request: Request, names: Sequence[str] | None, rejected: Mapping[str, Sequence[Reason]]) -> str:
    who = "no backend can" if names is None else f"the choice of backend ({', '.join(names)}) cannot"
    lines = [f"{who} serve this call exactly as asked.\n  {request}"]
    for name, reasons in rejected.items():
        lines.append(f"{name} cannot, because:")
        lines += [f"    {reason}" for reason in reasons]
    if names is not None:
        others = [entry for name, entry in registry().entries.items() if name not in names]
        able = [entry.name for entry in others if not entry_reasons(entry, request)]
        lines.append(f"Not asked, and able: {', '.join(able) or 'none'}.")
    elif not rejected:
        lines.append("No backend is registered; `xattn info` shows what failed to load.")
    return "\n".join(lines)


def _warn_if_broken(rejected: Mapping[str, Sequence[Reason]]) -> None:
    if torch.compiler.is_compiling():
        return
    for name, reasons in rejected.items():
        # One that is also disabled has that reason first, and its user knows.
        if reasons[0].code == "broken" and name not in _warned:
            _warned.add(name)
            text = f"xattn goes on without the backend {name!r}: {reasons[0]}"
            warnings.warn(text, BrokenBackendWarning, stacklevel=6)


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
    text = text or "none is installed for this device"
    warnings.warn(
        f"xattn takes the slow backend {entry.name!r} for a large problem ({request}). It holds all "
        f"{request.scores:,} scores at once. The faster ones cannot serve it: {text}",
        SlowBackendWarning,
        stacklevel=6,
    )
