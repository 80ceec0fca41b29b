"""A stand-in for FlashAttention-3, which runs on Hopper alone.

The operators `fwd` and `bwd` with the schemas, checks and faults of hopper/ of flash-attention, as read at commit
0251105a and run on an NVIDIA H100. The numbers are the suite's own: only what is wrong about them is FlashAttention's.
What a kernel leaves unwritten is NaN.

`xattn_elsewhere.nvidia.fa3:complete` is an executor for a build of everything, `pypi` for one without what fa3-fwd
lacks. To name one is to install the stand-in for the rest of the process.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import xattn_nvidia.fa3.installation
from xattn_nvidia.fa3 import vendor
from xattn_nvidia.fa3.installation import Build

from xattn.plugin.devices import emulated
from xattn_elsewhere.executor import Elsewhere
from xattn_elsewhere.nvidia.fa3 import operators

BUILDS = {
    "complete": frozenset[str](),
    "pypi": frozenset({"BACKWARD", "PAGEDKV", "LOCAL", "FP16"}),
}


def install(name: str) -> None:
    """Take the place of FlashAttention-3 in this process, and make xattn take CPU tensors for those of a Hopper GPU."""
    operators.disabled = BUILDS[name]
    sys.modules[f"{operators.PACKAGE}._C"] = ModuleType(f"{operators.PACKAGE}._C")
    build = Build(operators.PACKAGE, "3.0.0", Path(__file__).parent, BUILDS[name])
    xattn_nvidia.fa3.installation.overridden = build
    vendor.forget()
    emulated["cpu"] = ("cuda", "sm_90")


def __getattr__(name: str) -> Elsewhere:
    if name not in BUILDS:
        raise AttributeError(f"no stand-in {name!r}: {', '.join(BUILDS)}")
    install(name)
    return Elsewhere("stand-in")
