"""xattn as it is when a process starts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import EntryPoint

from xattn.dispatch import measured, plans, registry, selection


@contextmanager
def fresh(plugins: Sequence[EntryPoint] | None = None, disabled: Sequence[str] = ()) -> Iterator[None]:
    """Inside, nothing is planned yet, no table was read and no warning was given yet; afterwards likewise.

    plugins: the only ones that there are inside; None is those of this process. disabled: names as XATTN_DISABLE has
    them, with plugins alone.
    """
    if plugins is None and disabled:
        raise ValueError("disabled goes with plugins")
    forget()
    before = registry.registry()
    if plugins is not None:
        registry.swap(registry.loaded(plugins, disabled))
    try:
        yield
    finally:
        registry.swap(before)
        forget()


def forget() -> None:
    """Forget every plan, what was measured and built, and which warnings were given."""
    plans.clear()
    measured.forget()
    selection.forget_warnings()
