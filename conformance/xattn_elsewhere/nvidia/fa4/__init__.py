"""A stand-in for FlashAttention-4, which compiles its kernels for Hopper and newer cards alone.

`_flash_attn_fwd` and `_flash_attn_bwd` with the checks and faults of flash_attn.cute 4.0.0b36, as read there and run on
an NVIDIA H100. The numbers are the suite's own: only what is wrong about them is FlashAttention's. What a kernel leaves
unwritten is NaN.

`xattn_elsewhere.nvidia.fa4:complete` is an executor; to name it is to install the stand-in for the rest of the process.
"""

from __future__ import annotations

import sys
from types import ModuleType

import xattn_nvidia.fa4.installation
from xattn_nvidia.fa4 import ops, vendor
from xattn_nvidia.fa4.installation import Installation

from xattn.plugin.devices import emulated
from xattn_elsewhere.executor import Elsewhere
from xattn_elsewhere.nvidia.fa4 import interface

_MODULE = "flash_attn.cute.interface"


def install() -> None:
    """Take the place of FlashAttention-4 in this process, and make xattn take CPU tensors for those of a Hopper GPU."""
    for name in ("flash_attn", "flash_attn.cute"):
        sys.modules[name] = ModuleType(name)
    sys.modules[_MODULE] = interface
    xattn_nvidia.fa4.installation.overridden = Installation("4.0.0b36", "4.8.1")
    vendor.forget()
    ops.built.clear()
    emulated["cpu"] = ("cuda", "sm_90")


def uninstall() -> None:
    for name in ("flash_attn", "flash_attn.cute", _MODULE):
        sys.modules.pop(name, None)
    xattn_nvidia.fa4.installation.overridden = None
    vendor.forget()
    emulated.clear()


def __getattr__(name: str) -> Elsewhere:
    if name != "complete":
        raise AttributeError(f"no stand-in {name!r}: complete")
    install()
    return Elsewhere("stand-in")
