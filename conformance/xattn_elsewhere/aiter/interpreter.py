"""aiter's Triton kernels on the CPU, by Triton's interpreter made right for bfloat16, and for what `language` has.

Triton keeps bfloat16 as 16-bit integers there: up to 3.8 it multiplies them as such, and cuts off the low half of a
float32 instead of rounding it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from threading import RLock
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

# Read by Triton when it is imported, and by every @triton.jit.
os.environ["TRITON_INTERPRET"] = "1"

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.runtime import interpreter
from xattn_rocm.installation import Installation

from xattn.plugin.devices import emulated
from xattn_elsewhere.aiter import language, source
from xattn_elsewhere.executor import Elsewhere

ARCH = "gfx942"

Array = NDArray[Any]


class _Driver:
    """Says that the active GPU is AMD's. Nothing is compiled for it."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("hip", ARCH, 64)

    def get_current_device(self) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")


def widened(bits: Array) -> Array:
    """bfloat16 as its bits, as float32."""
    wide: Array = (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return wide


def narrowed(values: Array) -> Array:
    """float32 rounded to bfloat16, to nearest and ties to even, as its bits."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    up = np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    rounded: Array = ((bits + up) >> np.uint32(16)).astype(np.uint16)
    # A NaN may carry into the sign and become 0.
    return np.where(np.isnan(values), np.uint16(0x7FC0), rounded)


def _floats(handle: Any) -> Array:
    data: Array = handle.data
    if language.is_fp8(handle.dtype.scalar):
        return language.widened(handle)
    return widened(data) if handle.dtype.scalar == tl.bfloat16 else data


def _convert_float(original: Callable[..., Array]) -> Callable[..., Array]:
    def convert(data: Array, source_type: Any, target_type: Any, rounding: Any) -> Array:
        if source_type == tl.bfloat16 and target_type == tl.float32:
            return widened(data).view(np.uint32)
        if source_type == tl.float32 and target_type == tl.bfloat16:
            return narrowed(data)
        return original(data, source_type, target_type, rounding)

    return convert


def _dot(_: Any, a: Any, b: Any, d: Any, *__: Any) -> Any:
    """float32 products and sums, as the matrix units have them."""
    product = np.matmul(_floats(a).astype(np.float32), _floats(b).astype(np.float32))
    return interpreter.TensorHandle(product + d.data, d.dtype.scalar)


def _no_bfloat16(original: Callable[..., Any]) -> Callable[..., Any]:
    """The other operations would compute with bfloat16's bits as integers. None of aiter's attention kernels asks."""

    def operate(builder: Any, *arguments: Any) -> Any:
        handles, operation = arguments[:-1], arguments[-1]
        if operation not in (np.bitwise_and, np.bitwise_or) and any(h.dtype.scalar == tl.bfloat16 for h in handles):
            raise NotImplementedError(f"{operation} on bfloat16 in Triton's interpreter")
        return original(builder, *arguments)

    return operate


def _one_at_a_time(original: Callable[..., Any]) -> Callable[..., Any]:
    """The interpreter changes triton.language while a kernel runs, for the whole process."""
    lock = RLock()

    def launch(*args: Any, **options: Any) -> Any:
        with lock:
            return original(*args, **options)

    return launch


def install() -> Installation:
    """Change Triton's interpreter in this process, and make xattn take CPU tensors for an AMD GPU's."""
    language.install()
    builder = interpreter.InterpreterBuilder
    builder.create_dot = _dot
    builder.binary_op = _no_bfloat16(builder.binary_op)
    builder.unary_op = _no_bfloat16(builder.unary_op)
    executor = interpreter.GridExecutor
    executor.__call__ = _one_at_a_time(executor.__call__)
    interpreter._convert_float = _convert_float(interpreter._convert_float)
    triton.runtime.driver.set_active(_Driver())
    # What aiter asks torch of the GPU. No tensor is ever on it.
    properties = SimpleNamespace(multi_processor_count=source.COMPUTE_UNITS, gcnArchName=ARCH)
    torch.cuda.current_device = lambda: 0
    torch.cuda.get_device_properties = lambda device=None: properties  # type: ignore[assignment, return-value]
    found = source.prepare(ARCH)
    emulated["cpu"] = ("rocm", ARCH)
    # Rows that a mask hides are -inf - -inf, which NumPy would warn of.
    np.seterr(all="ignore")
    return found


_aiter = install()
run = Elsewhere("vendor code elsewhere", source.about(_aiter, ARCH, "Triton's interpreter"))
