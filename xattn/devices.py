"""What xattn calls a device: "rocm" apart from "cuda", and the architecture's name."""

from __future__ import annotations

import torch

# What an emulation says in place of the truth: torch's device type -> (device, arch). Only the conformance suite's
# worker processes write to it, to run a vendor's code where the vendor's hardware is not.
emulated: dict[str, tuple[str, str | None]] = {}

_archs: dict[int, str] = {}


def hardware(device: torch.device) -> tuple[str, str | None]:
    """(device, arch) as in `Request`: ("cuda", "sm_90"), ("rocm", "gfx942"), ("cpu", None)."""
    return emulated[device.type] if device.type in emulated else real(device)


def real(device: torch.device) -> tuple[str, str | None]:
    """As `hardware`, whatever an emulation says."""
    if device.type != "cuda":
        return device.type, None
    return ("cuda" if torch.version.hip is None else "rocm"), _arch(device.index or 0)


def _arch(index: int) -> str:
    if index not in _archs:
        properties = torch.cuda.get_device_properties(index)
        if torch.version.hip is not None:
            _archs[index] = str(properties.gcnArchName).split(":")[0]
        else:
            _archs[index] = f"sm_{properties.major}{properties.minor}"
    return _archs[index]


# What torch.compiler.assume_constant_result does, which would import all of torch._dynamo: torch.compile calls the
# function while it traces, and takes what it returns for a constant.
_arch._dynamo_marked_constant = True  # type: ignore[attr-defined]
