"""What measurement adds to `auto`: the order of kernels whose times are known, and what is not built yet.

The tables are imported where a call is first planned, not where xattn is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from xattn.dispatch.failures import is_plugins, raised
from xattn.dispatch.registry import Entry, registry
from xattn.plugin.backend import Kernel
from xattn.plugin.constant import traced_as_constant
from xattn.plugin.request import Request

if TYPE_CHECKING:
    from xattn.dispatch.tables.kind import Exact, Sizes
    from xattn.dispatch.tables.reading import Measured

Ranked = tuple[Entry, Kernel[Any]]

# What a kernel said when it was first asked whether it is built: by kind of call, backend and kernel.
_answers: dict[object, str | None] = {}


def forget() -> None:
    """Read tables again, and ask again what is built."""
    from xattn.dispatch.tables import reading

    _answers.clear()
    reading.forget()


def in_order(request: Request) -> list[Ranked]:
    """Kernels in the order in which `auto` tries them: as declared, or by times where they are known."""
    declared = registry().ordered(request)
    if not _has_times(request.op, request.device):
        return declared
    from xattn.dispatch.tables.kind import kind_of

    kind = kind_of(request)
    if kind is None:
        return declared
    names = tuple([entry.name for entry, _ in declared])
    return [declared[place] for place in _places(kind.exact, kind.extents, request.device, request.arch, names)]


def measured(request: Request) -> Measured | None:
    """What is known of the times of a request."""
    from xattn.dispatch.tables.kind import kind_of
    from xattn.dispatch.tables.reading import tables

    kind = kind_of(request)
    return None if kind is None else tables().find(kind, request.device, request.arch)


@traced_as_constant
def _has_times(op: str, device: str) -> bool:
    from xattn.dispatch.tables.reading import tables

    return tables().measures(op, device)


@traced_as_constant
def _places(exact: Exact, extents: Sizes, device: str, arch: str | None, names: tuple[str, ...]) -> tuple[int, ...]:
    from xattn.dispatch.tables.kind import Kind
    from xattn.dispatch.tables.order import by_time
    from xattn.dispatch.tables.reading import tables

    found = tables().find(Kind(exact, extents), device, arch)
    times = {} if found is None else {name: time.p50_us for name, time in found.times.items()}
    return tuple(by_time(names, times))


def unbuilt(entry: Entry, kernel: Kernel[Any], request: Request, keep: bool = True) -> str | None:
    """What has to be compiled before a kernel's first call, because of which `auto` passes over it; None where it is
    built, or was measured here. keep: the answer is that of its kind for the rest of the process."""
    if type(kernel).unbuilt is Kernel.unbuilt:
        return None
    from xattn.dispatch.tables.kind import kind_of

    try:
        what = kernel.unbuilt(request)
    except BaseException as error:
        if not is_plugins(error):
            raise
        what = f"unbuilt() raised {raised(error)}"
    kind = kind_of(request)
    if kind is None:
        return what
    return _answer(
        kind.exact, kind.extents, request.device, request.arch, entry.name, type(kernel).__name__, what, keep
    )


@traced_as_constant
def _answer(
    exact: Exact,
    extents: Sizes,
    device: str,
    arch: str | None,
    backend: str,
    kernel: str,
    what: str | None,
    keep: bool,
) -> str | None:
    from xattn.dispatch.tables.kind import Kind
    from xattn.dispatch.tables.reading import tables

    key = exact, extents, device, arch, backend, kernel
    if key in _answers:
        return _answers[key]
    if what is not None:
        found = tables().find(Kind(exact, extents), device, arch)
        if found is not None and found.by_user and backend in found.times:
            what = None
    if keep:
        _answers[key] = what
    return what
