"""What came out of a plugin's code: contained where it is the plugin's own, and nobody else's."""

from __future__ import annotations

import functools
import inspect
import signal
from collections.abc import Iterator
from types import CodeType, TracebackType
from typing import Any

from torch.compiler import is_dynamo_compiling


def is_plugins(error: BaseException) -> bool:
    """Whether an exception that came out of a plugin's code is of its making, of whatever class: some modules call
    sys.exit or pytest.skip when they are imported. Ctrl-C, memory that ran out, and what the handler of a signal raised
    that arrived in the meantime are not."""
    if isinstance(error, (KeyboardInterrupt, GeneratorExit, MemoryError)):
        return False
    return is_dynamo_compiling() or not _handlers().intersection(_codes(error.__traceback__))


def raised(error: BaseException) -> str:
    """An exception in one line of a report."""
    return f"{type(error).__name__}: {error}"


def _codes(traceback: TracebackType | None) -> Iterator[CodeType]:
    while traceback is not None:
        yield traceback.tb_frame.f_code
        traceback = traceback.tb_next


def _handlers() -> set[CodeType]:
    """The code of the handlers of signals that are written in Python."""
    found = map(signal.getsignal, signal.valid_signals())
    return {code for handler in found if (code := _code(handler)) is not None}


def _code(handler: Any) -> CodeType | None:
    while isinstance(handler, functools.partial):
        handler = handler.func
    if callable(handler) and not inspect.isroutine(handler):
        handler = type(handler).__call__
    return getattr(handler, "__code__", None)
