"""Whether FlashAttention-4 and what it is compiled with are installed and fit: found on disk, never by importing."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch

from xattn import Reason
from xattn.plugin.constant import traced_as_constant
from xattn_nvidia.shared.detection import at_least, described, installed

ARCHS = frozenset({"sm_90"})
# The oldest version whose functions were read and run, and what it needs beside torch.
_OLDEST = "4.0.0b36"
_NEEDS = ("nvidia-cutlass-dsl-libs-base", "quack-kernels", "apache-tvm-ffi", "torch-c-dlpack-ext", "einops")
_INSTALL = "pip install 'xattn[nvidia]'"


@dataclass(frozen=True)
class Installation:
    """The versions of FlashAttention-4 and of the DSL that it is written in."""

    version: str
    dsl: str

    def __str__(self) -> str:
        return f"flash-attn-4 {self.version}, nvidia-cutlass-dsl {self.dsl}"


# Stand-ins set it, in their own worker process: returned in place of what is found.
overridden: Installation | None = None


def installation() -> Installation | Reason:
    """What calls go to, or why there is none. Found once in a process."""
    return _found() if overridden is None else overridden


def clear() -> None:
    """Forget what was found."""
    _cached.cache_clear()


def describe() -> str:
    """One line for `xattn info`."""
    return described(installation(), ARCHS)


@traced_as_constant
def _found() -> Installation | Reason:
    return _cached()


@functools.cache
def _cached() -> Installation | Reason:
    version = installed("flash-attn-4")
    if version is None or not _has_kernels():
        # The package flash-attn is FlashAttention-2, in a folder of the same name.
        return _stop("FlashAttention-4 is not installed", _INSTALL)
    if not at_least(version, _OLDEST):
        return _stop(f"flash-attn-4 {version}, where {_OLDEST} is the oldest that is known", f"{_INSTALL} --upgrade")
    for name in _NEEDS:
        if installed(name) is None:
            return _stop(f"flash-attn-4 without {name}", f"pip install {name}")
    return _dsl(version)


def _dsl(version: str) -> Installation | Reason:
    base = installed("nvidia-cutlass-dsl-libs-base")
    assert base is not None
    major = (torch.version.cuda or "13").split(".")[0]
    flavour = installed(f"nvidia-cutlass-dsl-libs-cu{major}")
    hint = f"pip install 'nvidia-cutlass-dsl[cu{major}]=={base}'"
    if flavour is None:
        return _stop(f"nvidia-cutlass-dsl without the libraries for CUDA {major}, which torch has", hint)
    if flavour != base:
        return _stop(f"nvidia-cutlass-dsl {base} with libraries of {flavour}", hint)
    if find_spec("cutlass") is None:
        where = "It is found by a .pth file, which Python reads in site folders alone, and not in PYTHONPATH."
        return _stop("nvidia-cutlass-dsl, whose module cutlass is on no path", where)
    return Installation(version, base)


def _has_kernels() -> bool:
    try:
        spec = find_spec("flash_attn")
    except ValueError:  # sys.modules has a module that somebody made by hand
        return False
    folders = [] if spec is None else spec.submodule_search_locations or ()
    return any((Path(folder) / "cute" / "interface.py").is_file() for folder in folders)


def _stop(got: str, hint: str) -> Reason:
    return Reason("fa4", got, "FlashAttention-4 and what it is compiled with", hint)
