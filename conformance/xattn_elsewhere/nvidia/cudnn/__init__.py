"""A stand-in for cuDNN and its frontend, which run on NVIDIA's cards alone.

The operators `cudnn::sdpa_fwd` and `sdpa_bwd`, and of its graphs what attention over pages needs, with the checks and
faults of nvidia-cudnn-frontend 1.32 and cuDNN 9.19, as read there and run on an NVIDIA H100. The numbers are the
suite's own: only what is wrong about them is cuDNN's. What a kernel leaves unwritten is NaN.

`xattn_elsewhere.nvidia.cudnn:complete` is an executor; to name it is to install the stand-in for the rest of the
process.
"""

from __future__ import annotations

import sys
from types import ModuleType

import xattn_nvidia.cudnn.installation
from xattn_nvidia.cudnn import vendor
from xattn_nvidia.cudnn.installation import Installation

from xattn.plugin.devices import emulated
from xattn_elsewhere.executor import Elsewhere
from xattn_elsewhere.nvidia.cudnn import operators, pages

_MODULES = {
    "cudnn": pages,
    "cudnn.sdpa": ModuleType("cudnn.sdpa"),
    "cudnn.sdpa.fwd": ModuleType("cudnn.sdpa.fwd"),
    "cudnn.sdpa.fwd.torch_op": operators,
}


def install() -> None:
    """Take the place of cuDNN in this process, and make xattn take CPU tensors for those of a Hopper GPU."""
    sys.modules.update(_MODULES)
    xattn_nvidia.cudnn.installation.overridden = Installation("1.32.0", 91900)
    vendor.forget()
    emulated["cpu"] = ("cuda", "sm_90")


def uninstall() -> None:
    for name in _MODULES:
        sys.modules.pop(name, None)
    xattn_nvidia.cudnn.installation.overridden = None
    vendor.forget()
    emulated.clear()


def __getattr__(name: str) -> Elsewhere:
    if name != "complete":
        raise AttributeError(f"no stand-in {name!r}: complete")
    install()
    return Elsewhere("stand-in")
