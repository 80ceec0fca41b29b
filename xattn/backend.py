"""The plugin interface: one hook, one base class. docs/write-a-backend.md walks through a whole plugin.

A plugin is a distribution with an entry point in the group `xattn`:

    [project.entry-points.xattn]
    acme = "xattn_acme"

whose module implements the hook:

    import xattn

    @xattn.hookimpl
    def xattn_backends():
        return [AcmeBackend()]

The module is imported in every process that calls xattn, so it must not import the vendor's package: `reasons` and
`plan` run later, `plan` only when the backend was chosen.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import ClassVar

import pluggy

from xattn.capabilities import Capabilities
from xattn.output import Output
from xattn.reasons import Reason
from xattn.request import Request
from xattn.rotary.plain import Rotated
from xattn.rotary.request import RotaryRequest

API_VERSION = 1
ENTRY_POINT_GROUP = "xattn"

hookspec = pluggy.HookspecMarker("xattn")
hookimpl = pluggy.HookimplMarker("xattn")

Plan = Callable[..., Output]


@hookspec
def xattn_backends() -> Iterable[Backend]:  # type: ignore[empty-body]
    """Return the backends of this plugin. Called once, when xattn is first used."""


class Backend(ABC):
    """One way to compute attention. To write one:

    1. Set `name`, `api_version = 1` and `capabilities`, one block for each device, or for some archs of one.
    2. Put into `limits` what a table cannot say: combinations, sizes, a missing vendor package.
    3. Return from `plan` a callable that does layout work and calls the kernel, nothing else.
    4. Run the conformance suite over it.
    """

    name: ClassVar[str]
    api_version: ClassVar[int]
    capabilities: ClassVar[tuple[Capabilities, ...]]

    def block(self, request: Request | RotaryRequest) -> Capabilities | None:
        """The capabilities declared for the request's device: of several blocks the first with its arch, or else the
        first."""
        found = [block for block in self.capabilities if block.device in (request.device, "any")]
        for block in found:
            if block.archs is None or request.arch in block.archs:
                return block
        return found[0] if found else None

    def reasons(self, request: Request) -> list[Reason]:
        """Everything that stops this backend; empty means that the call must work. Pure: never raises, never imports
        the vendor's package."""
        block = self.block(request)
        if block is None:
            served = ", ".join(dict.fromkeys(block.device for block in self.capabilities))
            return [Reason("device", request.device, served)]
        return [*block.reasons(request), *self.limits(request)]

    def limits(self, request: Request) -> list[Reason]:
        """Reasons beyond the capability block. Pure, as `reasons`."""
        return []

    @abstractmethod
    def plan(self, request: Request) -> Plan:
        """A callable for calls of this kind, made only when `reasons` is empty.

        It is called as `run(q, k, v)`, or, where the request has optional tensors, as `run(q, k, v, sinks=...,
        alibi_slopes=..., bias=..., mask=..., seqlens_k=...)` with those alone. It returns out, BSNH-contiguous, or
        `xattn.AttentionOutput(out, lse)` where the request has return_lse. It must be right for every tensor that
        the request describes, whatever its strides.
        """

    def kernel(self, request: Request) -> str:
        """The kernel that the plan will run, in the vendor's words, for `explain`."""
        return self.name

    def rotary_reasons(self, request: RotaryRequest) -> list[Reason]:
        """As `reasons`, for `apply_rotary`. A backend that has the op overrides this and `rotary_plan`."""
        return [Reason("op", "apply_rotary", "attention", 'backend="auto" rotates whoever computes attention.')]

    def rotary_plan(self, request: RotaryRequest) -> Callable[..., Rotated]:
        """As `plan`, for `apply_rotary`: called as `run(q, k, cos, sin)`, with None for k where the request has none.
        Returns new tensors (q, k), rotated, BSNH-contiguous, and None for k likewise."""
        raise NotImplementedError(f"{self.name} has no apply_rotary")

    def info(self) -> dict[str, str]:
        """What `xattn info` shows: versions, or one line on why the vendor's package cannot be used."""
        return {}
