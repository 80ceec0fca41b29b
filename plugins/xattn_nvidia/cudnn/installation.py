"""Whether cuDNN and its frontend are installed and fit: found on disk and asked of torch, never by importing."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch

from xattn import Reason
from xattn.plugin.constant import traced_as_constant
from xattn_nvidia.shared.detection import at_least, described, installed

ARCHS = frozenset({"sm_90"})
# The oldest that were run. Of older cuDNN's, 9.10.0, 9.10.1 and 9.14.0 have wrong kernels.
_FRONTEND, _CUDNN = "1.32.0", 91900
_INSTALL = "pip install 'xattn[nvidia]'"


@dataclass(frozen=True)
class Installation:
    """The version of the frontend, and cuDNN's as torch has it, 91900 for 9.19.0."""

    frontend: str
    cudnn: int

    def __str__(self) -> str:
        major, rest = divmod(self.cudnn, 10_000)
        return f"nvidia-cudnn-frontend {self.frontend}, cuDNN {major}.{rest // 100}.{rest % 100}"


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
    frontend = installed("nvidia-cudnn-frontend")
    if frontend is None:
        return _stop("nvidia-cudnn-frontend is not installed", _INSTALL)
    if not at_least(frontend, _FRONTEND):
        known = f"{_FRONTEND} is the oldest that is known"
        return _stop(f"nvidia-cudnn-frontend {frontend}, where {known}", f"{_INSTALL} --upgrade")
    if torch.version.cuda is None or not torch.backends.cudnn.is_available():
        return _stop("torch has no cuDNN", "Install torch for CUDA 13.")
    cudnn = torch.backends.cudnn.version()
    if cudnn is None or cudnn < _CUDNN:
        return _stop(f"cuDNN {cudnn}, where {_CUDNN} is the oldest that is known", "Install a newer torch.")
    return Installation(frontend, cudnn)


def _stop(got: str, hint: str) -> Reason:
    return Reason("cudnn", got, "nvidia-cudnn-frontend over cuDNN 9.19 or newer", hint)
