"""nki.language, the current namespace: what AWS's attention kernels use of it.

Source: nki/api/nki/language of the AWS Neuron documentation (SDK 2.32), and its architecture guides for the sizes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np

from xattn_elsewhere.nki.emulation.access import NkiTensor, ds
from xattn_elsewhere.nki.emulation.dtypes import NAMED, USABLE, Array, DType, dtype_of
from xattn_elsewhere.nki.emulation.launch import Kernel, program
from xattn_elsewhere.nki.emulation.memory import PARTITIONS, PSUM_BANK_BYTES, SBUF_BYTES
from xattn_elsewhere.nki.emulation.operators import OPERATORS
from xattn_elsewhere.nki.emulation.tensor import LimitError, Region

# The physical size of a partition of SBUF. What the compiler keeps of it for itself is not documented.
tile_size = SimpleNamespace(
    pmax=PARTITIONS,
    psum_fmax=PSUM_BANK_BYTES // 4,
    gemm_stationary_fmax=128,
    gemm_moving_fmax=512,
    total_available_sbuf_size=SBUF_BYTES,
)


class NKIObject:
    """nl.NKIObject: what a kernel's own classes derive from. Its dataclasses' fields need no annotation."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        annotated = dict(vars(cls).get("__annotations__", {}))
        plain = (name for name, value in vars(cls).items() if not (name.startswith("__") or _is_code(value)))
        cls.__annotations__ = {**annotated, **{name: Any for name in plain if name not in annotated}}


def _is_code(value: Any) -> bool:
    return callable(value) or hasattr(value, "__get__")


def ndarray(
    shape: Sequence[int],
    dtype: Any,
    buffer: Region = Region.sbuf,
    name: str = "",
    address: tuple[int, int] | None = None,
) -> NkiTensor:
    """nl.ndarray: nothing is written to it."""
    kind, sizes = dtype_of(dtype), tuple(int(size) for size in shape)
    if math.prod(sizes) < 1:
        raise LimitError(f"a tensor of shape {sizes}")
    if not buffer.on_chip:
        return NkiTensor(program().hbm(sizes, kind, buffer), kind, buffer)
    started = np.zeros(sizes, bool) if buffer is Region.psum else None
    data = program().core.tile(sizes, kind, buffer, address)
    return NkiTensor(data, kind, buffer, started, address=(0, 0) if address is None else address)


def program_id(axis: int = 0) -> int:
    return program().ids[axis]


def num_programs(axes: int = 0) -> int:
    return program().grid[axes]


def program_ndim() -> int:
    return len(program().grid)


def _check(grid: tuple[int, ...]) -> None:
    """The grid is the number of physical cores in a logical one."""
    if grid not in ((), (1,), (2,)):
        raise LimitError(f"the grid {grid}: the number of cores in a logical core, 1 or 2")


def _wrap(data: Array, dtype: DType, region: Region) -> NkiTensor:
    return NkiTensor(data, dtype, region)


def jit(function: Any = None, **_: Any) -> Any:
    """nki.jit, with or without arguments."""
    return jit if function is None else Kernel(getattr(function, "function", function), _wrap, _check)


NAMES: dict[str, Any] = {
    **USABLE,
    **NAMED,
    **OPERATORS,
    **{region.value: region for region in Region},
    "tile_size": tile_size,
    "NKIObject": NKIObject,
    "NkiTensor": NkiTensor,
    "ndarray": ndarray,
    "ds": ds,
    "affine_range": range,
    "sequential_range": range,
    "static_range": range,
    "program_id": program_id,
    "num_programs": num_programs,
    "program_ndim": program_ndim,
}
