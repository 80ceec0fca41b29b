"""What is judged: a backend on a device, under a profile, run by an executor."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor

from xattn.dispatch.registry import registry
from xattn.plugin.devices import device_and_arch
from xattn_conformance.case import Case
from xattn_conformance.ops.call import Call, Execute, execute
from xattn_conformance.profiles.schema import Profile
from xattn_conformance.result import Provenance
from xattn_conformance.tolerance.arithmetic import Arithmetic

# From the strongest statement to the weakest.
_PROVENANCES: tuple[Provenance, ...] = get_args(Provenance)


class TargetError(ValueError):
    """The run asks for a backend, a device or an executor that is not there."""


@dataclass(frozen=True)
class Target:
    """backend: its name in xattn. device: torch's name for it. kind: xattn's, as in `Request.device`.

    execute: runs a call; by default the public call, eagerly.
    profile_file: the file that took the place of the backend's own profile; empty where none did.
    soak: how many times more each case is called; 0 for no more than the case asks for.
    """

    backend: str
    device: str
    kind: str
    profile: Profile
    execute: Execute
    provenance: Provenance
    profile_file: str = ""
    soak: int = 0

    def arithmetic(self, case: Case) -> Arithmetic:
        return self.profile.arithmetic_for(self.kind, case.dtype)

    def run(
        self, call: Call, seed: int | None = 0, around: Callable[[Execute], Execute] | None = None
    ) -> dict[str, Tensor]:
        """The results of the call, after torch.manual_seed(seed): the same random numbers at every call. None leaves
        the generator where it stands. around: wraps what executes it."""
        if seed is not None:
            torch.manual_seed(seed)
        return call.run(self.backend, self.execute if around is None else around(self.execute))


def make(backend: str, device: str, profile: Profile, profile_file: str = "", soak: int = 0) -> Target:
    """Raises TargetError for a backend that is unknown or disabled, a device that is not there, and an executor that
    cannot be loaded."""
    check_backend(backend)
    # An executor may be an emulation, which says what a device is.
    run, said = _executor(profile.executor) if profile.executor else (execute, _PROVENANCES[0])
    try:
        torch.empty(0, device=device)
        kind, _ = device_and_arch(torch.device(device))
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise TargetError(f"no device {device!r} here: {str(error).splitlines()[0]}") from error
    provenance: Provenance = "hardware" if kind in profile.hardware else "vendor code elsewhere"
    provenance = max(provenance, said, key=_PROVENANCES.index)
    return Target(backend, device, kind, profile, run, provenance, profile_file, soak)


def check_backend(backend: str) -> None:
    """Raises TargetError unless xattn has a backend of this name that a call can reach."""
    others = registry().names(backend)
    if others != [backend]:
        hint = f"{backend!r} is a plugin; name one of its backends: {', '.join(others)}" if others else ""
        raise TargetError("\n".join([hint or registry().unknown(backend), *registry().problems()]))
    disabled = registry().entry(backend).disabled_by
    if disabled is not None:
        raise TargetError(f"the backend {backend!r} is disabled by {disabled}; unset it to judge the backend")


def default_device(backend: str) -> str:
    """The first device among the backend's capability blocks that this machine has. Raises TargetError for none."""
    check_backend(backend)
    here = ["cpu"]
    if torch.accelerator.is_available():
        accelerator = torch.accelerator.current_accelerator()
        here += [] if accelerator is None else [accelerator.type]
    kinds = {device_and_arch(torch.device(name))[0]: name for name in here}
    declared = [block.device for kernel in registry().entry(backend).every_kernel for block in kernel.capabilities]
    for kind in declared:
        if kind in (*kinds, "any"):
            return kinds.get(kind, "cpu")
    raise TargetError(
        f"{backend} declares {', '.join(declared)}, and this machine has {', '.join(kinds)}; see --device"
    )


def _executor(name: str) -> tuple[Execute, Provenance]:
    """The object "package.module:attribute" and how its results are obtained."""
    try:
        found = pkgutil.resolve_name(name)
    except (ImportError, AttributeError, ValueError) as error:
        raise TargetError(f"the profile's executor {name!r} cannot be loaded: {error}") from error
    said = getattr(found, "provenance", None)
    if not callable(found) or said not in _PROVENANCES:
        wanted = ", ".join(map(repr, _PROVENANCES))
        raise TargetError(f"the executor {name!r} must be callable, with an attribute provenance out of {wanted}")
    return found, said
