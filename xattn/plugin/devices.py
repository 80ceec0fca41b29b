"""What xattn calls a device: "rocm" apart from "cuda", the architecture's name, and the card's."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from xattn.plugin.constant import traced_as_constant

# What is said in place of the truth: torch's device type -> (device, arch). Executors of the conformance suite write to
# it, in processes of their own, to run a vendor's code where the vendor's hardware is not.
emulated: dict[str, tuple[str, str | None]] = {}

_archs: dict[int, str] = {}


def device_and_arch(device: torch.device) -> tuple[str, str | None]:
    """(device, arch) as in `Request`: ("cuda", "sm_90"), ("rocm", "gfx942"), ("cpu", None)."""
    return emulated[device.type] if device.type in emulated else real(device)


@contextmanager
def taken_for(device_type: str, device: str, arch: str | None) -> Iterator[None]:
    """For calls inside, torch's `device_type` is the device named: a tracer's tensors may not say what they are."""
    before = emulated.get(device_type)
    emulated[device_type] = (device, arch)
    try:
        yield
    finally:
        if before is None:
            del emulated[device_type]
        else:
            emulated[device_type] = before


def real(device: torch.device) -> tuple[str, str | None]:
    """As `device_and_arch`, whatever an emulation says."""
    if device.type != "cuda":
        return device.type, None
    return ("cuda" if torch.version.hip is None else "rocm"), _arch(device.index or 0)


@traced_as_constant
def _arch(index: int) -> str:
    if index not in _archs:
        properties = torch.cuda.get_device_properties(index)
        if torch.version.hip is not None:
            _archs[index] = str(properties.gcnArchName).split(":")[0]
        else:
            _archs[index] = f"sm_{properties.major}{properties.minor}"
    return _archs[index]


def card(device: torch.device) -> str:
    """The name of the GPU or CPU, as its vendor gives it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    listing = Path("/proc/cpuinfo")
    if listing.exists():
        with listing.open() as lines:  # of many cores it is long, and the first one says it
            for line in lines:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
