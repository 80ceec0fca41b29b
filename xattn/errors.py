"""The errors a call can raise, and the warnings it can give. See docs/contract.md for who raises what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xattn.plugin.reasons import Reason
    from xattn.plugin.request import Request


class XattnError(Exception):
    """Base of every error that xattn itself raises."""


class InvalidArgumentError(XattnError, ValueError):
    """The call contradicts the contract, whatever the backend: wrong shape, dtype, device or range."""

    def __init__(self, argument: str, got: object, want: str, hint: str = "") -> None:
        self.argument, self.got, self.want, self.hint = argument, got, want, hint
        super().__init__(f"{argument}: got {got}, want {want}" + (f". {hint}" if hint else ""))

    def __reduce__(self) -> tuple[Any, ...]:
        # By default an exception is made anew from its message alone, which would hide it behind a TypeError.
        return type(self), (self.argument, str(self.got), self.want, self.hint)


class UnsupportedError(XattnError, NotImplementedError):
    """No backend that the caller allows can serve the call exactly as asked.

    `request` is the call, `reasons` maps each backend that was asked to everything that stops it.
    """

    def __init__(self, message: str, request: Request, reasons: Mapping[str, Sequence[Reason]]) -> None:
        super().__init__(message)
        self.request, self.reasons = request, reasons

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.request, dict(self.reasons))


class UnknownBackendError(XattnError, LookupError):
    """`backend=`, `use_backend` or XATTN_BACKEND names something that is not there."""


class BrokenBackendError(XattnError, RuntimeError):
    """A backend's plan returned something else than the op promises: another type, dtype, shape or device, an out that
    is not contiguous, or no gradient where one was wanted. Raised before the caller sees it; the plan is not kept."""

    def __init__(self, backend: str, got: str, want: str, request: Request) -> None:
        self.backend, self.got, self.want, self.request = backend, got, want, request
        hint = f"Report it to the backend's authors; XATTN_DISABLE={backend} sets it aside."
        super().__init__(f"xattn's backend {backend!r} returned {got}, want {want}, for {request}. {hint}")

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.backend, self.got, self.want, self.request)


class SlowBackendWarning(UserWarning):
    """`auto` had to give a large problem to a backend that holds the whole score matrix."""


class BrokenBackendWarning(UserWarning):
    """A backend failed when asked whether it can serve a call. xattn goes on without it; `explain` says so too."""
