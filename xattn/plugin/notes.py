"""Notes on exceptions, for what a vendor's own message does not say."""

from __future__ import annotations


def add_note(error: BaseException, note: str) -> None:
    """`error.add_note(note)`, which Python 3.10 lacks; there pytest and the exceptiongroup package alone print it."""
    if hasattr(error, "add_note"):
        error.add_note(note)
    else:
        error.__dict__["__notes__"] = [*getattr(error, "__notes__", []), note]
