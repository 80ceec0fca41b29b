"""`use_backend`: a scoped choice of backend, below an explicit argument and above XATTN_BACKEND."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from contextvars import ContextVar, Token
from types import TracebackType

import torch

from xattn.errors import InvalidArgumentError
from xattn.registry import split_names

Choice = str | tuple[str, ...]


def _environment() -> Choice:
    names = split_names(os.environ.get("XATTN_BACKEND", ""))
    return names[0] if len(names) == 1 else names or "auto"


# XATTN_BACKEND, read once: reading os.environ costs 1 us a call.
environment = _environment()

scoped: ContextVar[Choice] = ContextVar("xattn_backend", default=environment)


class _Visible:
    """What compiled code sees of the open scopes.

    torch.compile can read neither a ContextVar nor, with a guard, a thread-local. It can guard on a plain attribute,
    so this one mirrors the scopes, and says when threads or tasks disagree.
    """

    def __init__(self) -> None:
        self.choice: Choice | None = None
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
        conflict |= outer != innermost.get(thread, environment)
        innermost[thread] = choice
    visible.choice = next(reversed(innermost.values()), None)
    visible.conflict = conflict or len(set(innermost.values())) > 1


def as_choice(backend: str | Sequence[str]) -> Choice:
    """A backend argument in hashable form. Raises InvalidArgumentError for what is neither a name nor names."""
    if isinstance(backend, str):
        return backend
    if not isinstance(backend, (tuple, list)) or not all(isinstance(name, str) for name in backend):
        raise InvalidArgumentError("backend", repr(backend), 'a name, a tuple or list of names, or "auto"')
    return tuple(backend)


def chosen(backend: str | Sequence[str]) -> Choice:
    """What an eager call's `backend` argument comes to: itself, else the scope, else XATTN_BACKEND."""
    return scoped.get() if backend == "auto" else as_choice(backend)


def traced(backend: str | Sequence[str]) -> Choice:
    """`chosen` for a call that torch.compile traces."""
    if backend != "auto":
        return as_choice(backend)
    if visible.conflict:
        raise RuntimeError(
            "threads or tasks hold different scopes of xattn.use_backend; pass backend= to the compiled call"
        )
    return environment if visible.choice is None else visible.choice


class use_backend:  # noqa: N801 - a context manager reads as a function
    """Choose the backend of every call inside a `with` block that names none itself.

    backend: as the argument of `attention`: a backend's or a plugin's name, an ordered sequence of them, or "auto".

    The scope is the current thread's or asyncio task's. Compiled functions called inside it see it too and are
    compiled anew for it; where threads or tasks hold different scopes at once, a compiled call raises instead of
    guessing, and one in a thread without a scope follows the only open one.
    Inside a function that is being compiled, pass `backend=` instead.
    """

    def __init__(self, backend: str | Sequence[str]) -> None:
        self._choice = as_choice(backend)
        self._tokens: list[Token[Choice]] = []

    def __enter__(self) -> None:
        if torch.compiler.is_compiling():
            raise RuntimeError(
                "xattn.use_backend cannot be entered inside a compiled function: its scope lives in a ContextVar, "
                "which torch.compile cannot trace. Enter it around the compiled function, or pass backend=."
            )
        from xattn.selection import candidates  # an unknown name is an error here, not at some later call

        candidates(self._choice)
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
