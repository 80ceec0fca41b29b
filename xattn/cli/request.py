"""A call on a device that this machine need not have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import typer

from xattn.dispatch.op import Op, Prepared
from xattn.dispatch.registry import registry
from xattn.plugin import Capabilities
from xattn.plugin.devices import device_and_arch, taken_for

# What a call's tensors are made on where nothing is run: they have shapes and no data.
NOWHERE = torch.device("meta")


def prepared_of(op: Op, arguments: Mapping[str, Any], device: str, arch: str | None) -> Prepared:
    """An op's call, described. Its tensors are on NOWHERE, and described as if they were on `device`; without `arch`,
    that of this machine's first such device is taken, if there is one."""
    with taken_for(NOWHERE.type, _known(device), arch or _present_arch(device)):
        return op.prepare(**arguments)


def present(name: str) -> torch.device:
    """A device of this machine on which calls can be timed, by its name as in `Request.device`."""
    cuda = "cuda" if torch.version.hip is None else "rocm"
    if name == "cpu":
        return torch.device("cpu")
    if name == cuda and torch.cuda.is_available():
        return torch.device("cuda")
    there = f"cpu, {cuda}" if torch.cuda.is_available() else "cpu"
    raise typer.BadParameter(f"this machine can time calls on: {there}", param_hint="--device")


def usual_dtype(device: str) -> torch.dtype:
    """What calls on a device are mostly in: float32 on the CPU; elsewhere bfloat16, or the first that is declared."""
    declared = set().union(*(block.dtypes for block in _blocks() if block.device == device))
    usual = () if device == "cpu" else (torch.bfloat16, torch.float16)
    return next((dtype for dtype in usual if dtype in declared), torch.float32)


def _blocks() -> list[Capabilities[Any]]:
    kernels = [kernel for entry in registry().entries.values() for kernel in entry.backend.kernels]
    return [block for kernel in kernels for block in kernel.capabilities]


def _known(device: str) -> str:
    """A device name as in `Request.device`: a typo would be a device that only a backend for any device serves."""
    declared = {block.device for block in _blocks()}
    try:
        plain = torch.device(device).type == device
    except RuntimeError:
        plain = False
    if not plain and device not in declared - {"any"}:
        raise typer.BadParameter(
            f"{device!r} is no device; name one as torch or a plugin does, without an index", param_hint="--device"
        )
    return device


def _present_arch(device: str) -> str | None:
    if not torch.cuda.is_available():
        return None
    name, arch = device_and_arch(torch.device("cuda"))
    return arch if name == device else None
