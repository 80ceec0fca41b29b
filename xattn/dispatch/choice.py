"""The choice of a backend: an explicit argument, else a scope of `use_backend`, else XATTN_BACKEND, else "auto"."""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Sequence
from contextvars import ContextVar, Token
from dataclasses import dataclass
from types import TracebackType

import torch
from torch.compiler import is_dynamo_compiling

from xattn.dispatch.registry import registry, split_names
from xattn.errors import InvalidArgumentError, UnknownBackendError


@dataclass(frozen=True, eq=False)
class Wish:
    """The choice of a scope or of XATTN_BACKEND: for the ops that its backends have. Where none of them has the op,
    "auto" decides; an explicit `backend=` never does so.

    Equal only to itself, which costs a look-up nothing: `wish` makes one for each choice.
    """

    backend: str | tuple[str, ...]

    def __str__(self) -> str:
        return str(self.backend)


# "auto" is any backend.
Choice = str | tuple[str, ...] | Wish


@functools.cache
def wish(backend: str | tuple[str, ...]) -> Choice:
    return "auto" if backend == "auto" else Wish(backend)


def _environment() -> str | tuple[str, ...]:
    names = split_names(os.environ.get("XATTN_BACKEND", ""))
    return names[0] if len(names) == 1 else names or "auto"


# XATTN_BACKEND, read once: reading os.environ costs 1 us a call.
environment = _environment()

_outermost = wish(environment)
scoped: ContextVar[Choice] = ContextVar("xattn_backend", default=_outermost)


class _Visible:
    """What compiled code sees of the open scopes.

    torch.compile can read neither a ContextVar nor, with a guard, a thread-local. It can guard on a plain attribute,
    so this one mirrors the scopes, and says when threads or tasks disagree.
    """

    def __init__(self) -> None:
        self.backend: str | tuple[str, ...] | None = None
        self.conflict = False


visible = _Visible()
# Open scopes in order of entry: (thread, choice, the choice that its context had before).
_open: dict[int, tuple[int, Choice, Choice]] = {}
_lock = threading.Lock()


def _mirror() -> None:
    innermost: dict[int, Choice] = {}
    conflict = False
    for thread, choice, outer in _open.values():
        # A scope that was not entered inside the thread's last one is another asyncio task's.
        conflict |= outer != innermost.get(thread, _outermost)
        innermost[thread] = choice
    last = next(reversed(innermost.values()), None)
    visible.backend = last.backend if isinstance(last, Wish) else last
    visible.conflict = conflict or len(set(innermost.values())) > 1


def names_of(backend: str | Sequence[str]) -> str | tuple[str, ...]:
    """A backend argument in hashable form. Raises InvalidArgumentError for what is neither a name nor names."""
    if isinstance(backend, str):
        return backend
    if not isinstance(backend, (tuple, list)) or not all(isinstance(name, str) for name in backend):
        hint = 'Left out, it is "auto"; xattn.backends() has the names.'
        raise InvalidArgumentError("backend", repr(backend), 'a name, a tuple or list of names, or "auto"', hint)
    return tuple(backend)


def chosen(backend: str | Sequence[str]) -> Choice:
    """What a call's `backend` argument comes to: itself, else the scope, else XATTN_BACKEND."""
    if backend != "auto":
        return names_of(backend)
    return _traced_scope() if is_dynamo_compiling() else scoped.get()


def _traced_scope() -> Choice:
    """The scope as a call sees it that torch.compile traces."""
    if visible.conflict:
        raise RuntimeError(
            "threads or tasks hold different scopes of xattn.use_backend; pass backend= to the compiled call"
        )
    backend = environment if visible.backend is None else visible.backend
    return "auto" if backend == "auto" else Wish(backend)


def named(choice: Choice) -> list[str] | None:
    """The backends that a choice names, in its order; None for "auto", which names none.

    Raises UnknownBackendError for a name that stands for nothing.
    """
    backend = choice.backend if isinstance(choice, Wish) else choice
    if backend == "auto":
        return None
    names: list[str] = []
    for name in (backend,) if isinstance(backend, str) else backend:
        found = registry().names(name)
        if not found:
            raise UnknownBackendError(_unknown(name, choice))
        names += [each for each in found if each not in names]
    if not names:
        raise UnknownBackendError("backend is an empty sequence; name at least one backend")
    return names


def allowed(choice: Choice, op: str) -> list[str] | None:
    """The backends that may serve an op, in the order of the choice; None is all, in the order of priority.

    Raises UnknownBackendError as `named`.
    """
    names = named(choice)
    if names is None or not isinstance(choice, Wish):
        return names
    return [name for name in names if registry().entry(name).kernels(op)] or None


def _unknown(name: str, choice: Choice) -> str:
    source = "XATTN_BACKEND: " if isinstance(choice, Wish) and choice.backend == environment else ""
    text = source + stands_for_nothing(name)
    if name == "auto":
        return text
    default = '"auto", which is the default, takes the best that can serve the call'
    return "\n".join([text, default, *registry().problems()])


def stands_for_nothing(name: str) -> str:
    """What to tell of a name, among others, that no backend and no plugin has."""
    if name == "auto":
        return '"auto" stands for every backend, so it stands alone: in a sequence, name the backends'
    return registry().unknown(name)


def problems() -> list[str]:
    """What is wrong with XATTN_BACKEND, a line each."""
    names = () if environment == "auto" else (environment,) if isinstance(environment, str) else environment
    return [f"XATTN_BACKEND: {stands_for_nothing(name)}" for name in names if not registry().names(name)]


class use_backend:  # noqa: N801 - a context manager reads as a function
    """Choose the backend of every call inside a `with` block that names none itself.

    backend: as the argument of `attention`: a backend's or a plugin's name, an ordered sequence of them, or "auto".

    The scope is the current thread's or asyncio task's. Compiled functions called inside it see it too and are
    compiled anew for it; where threads or tasks hold different scopes at once, a compiled call raises instead of
    guessing, and one in a thread without a scope follows the only open one.
    Inside a function that is being compiled, pass `backend=` instead.
    """

    def __init__(self, backend: str | Sequence[str]) -> None:
        self._choice = wish(names_of(backend))
        self._tokens: list[Token[Choice]] = []

    def __enter__(self) -> None:
        if torch.compiler.is_compiling():
            raise RuntimeError(
                "xattn.use_backend cannot be entered inside a compiled function: its scope lives in a ContextVar, "
                "which torch.compile cannot trace. Enter it around the compiled function, or pass backend=."
            )
        named(self._choice)  # an unknown name is an error here, not at some later call
        outer = scoped.get()
        token = scoped.set(self._choice)
        self._tokens.append(token)
        with _lock:
            _open[id(token)] = (threading.get_ident(), self._choice, outer)
            _mirror()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        token = self._tokens.pop()
        try:
            scoped.reset(token)
        finally:  # a generator closed in another context cannot reset; its scope is over all the same
            with _lock:
                del _open[id(token)]
                _mirror()
