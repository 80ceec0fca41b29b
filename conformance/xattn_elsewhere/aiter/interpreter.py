"""aiter's Triton kernels on the CPU, by Triton's interpreter, made right where it is not: see `triton_floats` and
`triton_language`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

# Read by Triton when it is imported, and by every @triton.jit.
os.environ["TRITON_INTERPRET"] = "1"

import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import interpreter
from xattn_conformance.result import Provenance
from xattn_rocm.installation import Installation

from xattn.plugin.devices import emulated
from xattn_elsewhere.aiter import source, triton_floats, triton_language
from xattn_elsewhere.executor import Elsewhere

ARCH = "gfx942"

# Fewer than a GPU has: each part that keys are split into is a program, and they run one after the other.
COMPUTE_UNITS = 4


class _Driver:
    """Says that the active GPU is AMD's. Nothing is compiled for it."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("hip", ARCH, 64)

    def get_current_device(self) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")


# Whether the programs of this thread's launches run from the last to the first.
_reverse: ContextVar[bool] = ContextVar("reverse", default=False)


@contextmanager
def in_reverse() -> Iterator[None]:
    """The last program first. A GPU runs them in any order: what comes out differently depends on a race."""
    token = _reverse.set(True)
    try:
        yield
    finally:
        _reverse.reset(token)


def _in_order(original: Callable[..., None]) -> Callable[..., None]:
    def set_grid_idx(builder: Any, *place: int) -> None:
        if _reverse.get():
            place = tuple(size - 1 - at for at, size in zip(place, builder.grid_dim, strict=True))
        original(builder, *place)

    return set_grid_idx


def install() -> Installation:
    """Change Triton's interpreter in this process, and make xattn take CPU tensors for an AMD GPU's."""
    triton_floats.install()
    triton_language.install()
    builder = interpreter.InterpreterBuilder
    builder.set_grid_idx = _in_order(builder.set_grid_idx)
    triton.runtime.driver.set_active(_Driver())
    # What aiter asks torch of the GPU. No tensor is ever on it.
    properties = SimpleNamespace(multi_processor_count=COMPUTE_UNITS, gcnArchName=ARCH)
    torch.cuda.current_device = lambda: 0
    torch.cuda.get_device_properties = lambda device=None: properties  # type: ignore[assignment, return-value]
    os.environ.setdefault("CU_NUM", str(COMPUTE_UNITS))
    found = source.prepare(ARCH)
    emulated["cpu"] = ("rocm", ARCH)
    # Rows that a mask hides are -inf - -inf, which NumPy would warn of.
    np.seterr(all="ignore")
    return found


_aiter = install()


class Reversed(Elsewhere):
    """With the programs of each launch in reverse."""

    def __call__(self, op: str, arguments: Mapping[str, Any], backend: str) -> Any:
        with in_reverse():
            return super().__call__(op, arguments, backend)


_PROVENANCE: Provenance = "vendor code elsewhere"
run = Elsewhere(_PROVENANCE, source.about(_aiter, ARCH, "Triton's interpreter"))
run_in_reverse = Reversed(_PROVENANCE, source.about(_aiter, ARCH, "Triton's interpreter, programs in reverse"))
