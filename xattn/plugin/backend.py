"""The plugin interface: one hook, a backend's name, and its kernels.

A plugin is a distribution with an entry point in the group `xattn`:

    [project.entry-points.xattn]
    acme = "xattn_acme"

whose module implements the hook:

    import xattn

    @xattn.hookimpl
    def xattn_backends():
        return [AcmeBackend()]

The module is imported in every process that calls xattn, so it must not import the vendor's package: `reasons` and
`plan` run later, `plan` only when the kernel was chosen.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import pluggy

from xattn.plugin.capabilities import Capabilities
from xattn.plugin.reasons import Reason
from xattn.plugin.request import Request

API_VERSION = 1
ENTRY_POINT_GROUP = "xattn"

hookspec = pluggy.HookspecMarker("xattn")
hookimpl = pluggy.HookimplMarker("xattn")

R = TypeVar("R", bound=Request)


class Plan(Protocol):
    """What `Kernel.plan` returns: called with the tensors of a call, and with its optional tensors by name."""

    def __call__(self, *tensors: Any, **given: Any) -> Any: ...


@hookspec
def xattn_backends() -> Iterable[Backend]:  # type: ignore[empty-body]
    """Return the backends of this plugin. Called once, when xattn is first used."""


@hookspec
def xattn_tables() -> Iterable[str | Path]:  # type: ignore[empty-body]
    """Return the tables of measured times that this plugin ships: JSON files, as `xattn tune --out` writes them. A
    plugin need not have this hook."""


class Kernel(ABC, Generic[R]):
    """One way to compute one op. Each op has a base class of its own, which sets `op` and says what `plan` returns:
    `xattn.AttentionKernel`, `xattn.RotaryKernel`, ... To write one:

    1. Set `capabilities`, one block for each device, or for some archs of one.
    2. Put into `limits` what a table cannot say: combinations, sizes, a missing vendor package.
    3. Return from `plan` a callable that does layout work and calls the vendor's function, nothing else.
    4. Run the conformance suite over it.
    """

    op: ClassVar[str]
    capabilities: ClassVar[tuple[Capabilities[Any], ...]]
    # Of several kernels of one op in a backend "acme" the one that backend="acme.<name>" asks for.
    name: ClassVar[str] = ""
    # Whether the plan has a method `prepare(batch)` that reads the step's lengths on the host. See `HeldPlan.prepare`.
    prepares_on_host: ClassVar[bool] = False

    def rank(self, request: R) -> int:
        """The place among the kernels that can serve a request, the highest first: as declared, by the phase. Of a
        kernel that another one of its backend does better for some requests, lower for these. Pure, as `reasons`."""
        block = self.block(request)
        return -1 if block is None else block.rank(request)

    def block(self, request: Request) -> Capabilities[Any] | None:
        """The capabilities declared for the request's device: of several blocks the first with its arch, or else the
        first."""
        found = [block for block in self.capabilities if block.device in (request.device, "any")]
        for block in found:
            if block.archs is None or request.arch in block.archs:
                return block
        return found[0] if found else None

    def reasons(self, request: R) -> list[Reason]:
        """Everything that stops this kernel; empty means that the call must work. Pure: never raises, never imports
        the vendor's package."""
        block = self.block(request)
        if block is None:
            served = ", ".join(dict.fromkeys(block.device for block in self.capabilities))
            return [Reason("device", request.device, served)]
        found = [*block.reasons(request), *self.limits(request)]
        if self.prepares_on_host and not request.host_lengths:
            hint = "Give them to xattn.PagedBatch.update_ as lists, which it keeps."
            found.append(Reason("lengths_on_host", "tensors on a device", "known to the host", hint))
        return found

    def limits(self, request: R) -> list[Reason]:
        """Reasons beyond the capability block. Pure, as `reasons`."""
        return []

    @abstractmethod
    def plan(self, request: R) -> Plan:
        """A callable for calls of this kind, made only when `reasons` is empty. It must be right for every tensor that
        the request describes, whatever its strides."""

    def unbuilt(self, request: R) -> str | None:
        """What has to be compiled before the first call of this kind, where that takes seconds and was not done yet: in
        words, as "72 to 128 s of nvcc". "auto" takes such a kernel once it is built, or once `xattn tune` measured it
        here, and passes over it until then. Asked once a kind and process; pure, as `reasons`."""
        return None

    def kernel_name(self, request: R) -> str:
        """What the plan will run, in the vendor's words, for `explain`."""
        return type(self).__name__


class Backend:
    """A name that users write in `backend=`, and the kernels behind it, each of one op. Of several kernels of one op
    the capable one of the highest rank serves; one that has a name can be asked for by itself, as "acme.name".

    packages: the distributions whose versions its speed depends on, beside torch and the plugin itself: what was
        measured with other versions of them does not count.
    """

    name: ClassVar[str]
    api_version: ClassVar[int]
    kernels: ClassVar[tuple[Kernel[Any], ...]]
    packages: ClassVar[tuple[str, ...]] = ()

    def info(self) -> dict[str, str]:
        """What `xattn info` shows: versions, or one line on why the vendor's package cannot be used."""
        return {}
