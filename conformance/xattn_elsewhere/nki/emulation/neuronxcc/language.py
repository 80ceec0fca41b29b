"""nki.language, the legacy namespace: what AWS's flash attention kernels use of it.

Source: general/nki/api/nki.language of the AWS Neuron documentation of SDK 2.26.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from types import SimpleNamespace
from typing import Any

import numpy as np

from xattn_elsewhere.nki.emulation.access import ds
from xattn_elsewhere.nki.emulation.dtypes import NAMED, USABLE, Array, DType
from xattn_elsewhere.nki.emulation.isa.tensor import product
from xattn_elsewhere.nki.emulation.language import program_id, program_ndim, tile_size
from xattn_elsewhere.nki.emulation.launch import Kernel, program
from xattn_elsewhere.nki.emulation.neuronxcc.tile import (
    SKIPPED,
    LoopReduced,
    Partitions,
    Skipped,
    Tile,
    elementwise,
    new,
    tile_of,
)
from xattn_elsewhere.nki.emulation.operators import OPERATORS, Operator, operator_of
from xattn_elsewhere.nki.emulation.tensor import LimitError, Region, copied


def maskable(call: Callable[..., Any]) -> Callable[..., Any]:
    """Add `mask`: a bool, known as the kernel is traced. False is to skip the call."""

    @wraps(call)
    def masked(*args: Any, mask: Any = None, **kwargs: Any) -> Any:
        if mask is not None and np.ndim(mask):
            raise NotImplementedError(f"{call.__name__} with a mask that differs between elements")
        if mask is not None and not mask:
            return SKIPPED
        if any(isinstance(each, Skipped) for each in (*args, *kwargs.values())):
            raise LimitError(f"{call.__name__} of what a mask skipped")
        return call(*args, **kwargs)

    return masked


@dataclass(frozen=True)
class Function(Operator):
    """An operator that is a call as well: nl.add(x, y)."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return _elementwise(self, *args, **kwargs)


@maskable
def _elementwise(op: Operator, x: Any, y: Any, *, dtype: Any = None) -> Tile:
    return elementwise(op, x, y, dtype)


def ndarray(shape: Any, dtype: Any, *, buffer: Region = Region.sbuf) -> Tile:
    return new(shape, dtype, buffer)


def full(
    shape: Any, fill_value: float, dtype: Any, *, buffer: Region = Region.sbuf, lazy_initialization: bool = False
) -> Tile:
    """Lazily or not, what is read is the value."""
    tile = new(shape, dtype, buffer)
    tile.write(np.full(tile.shape, fill_value, np.float32))
    return tile


def zeros(shape: Any, dtype: Any, *, buffer: Region = Region.sbuf, lazy_initialization: bool = False) -> Tile:
    return full(shape, 0, dtype, buffer=buffer)


def _from_hbm(call: str, src: Tile) -> None:
    if src.buffer.on_chip:
        raise LimitError(f"nki.language.{call} of {src!r}: it takes HBM")


def _square(data: Array) -> Array:
    """One element of HBM is a tile of one partition, a row a tile of one element in each."""
    return data.reshape(*data.shape, *(1,) * (2 - data.ndim))


@maskable
def load(src: Tile, *, dtype: Any = None) -> Tile:
    _from_hbm("load", src)
    return tile_of(_square(src.values()), dtype or src.dtype)


@maskable
def load_transpose2d(src: Tile, *, dtype: Any = None) -> Tile:
    _from_hbm("load_transpose2d", src)
    return tile_of(src.values().T, dtype or src.dtype)


@maskable
def store(dst: Tile, value: Tile) -> None:
    _from_hbm("store", dst)
    copied(dst, value)


@maskable
def copy(src: Tile, *, dtype: Any = None) -> Tile:
    return tile_of(src.values(), dtype or src.dtype)


@maskable
def matmul(x: Tile, y: Tile, *, transpose_x: bool = False) -> Tile:
    """x @ y, or x.T @ y, as a float32 tile in PSUM."""
    if not transpose_x:
        raise NotImplementedError("nki.language.matmul without transpose_x")
    return tile_of(product("nc_matmul", x, y), "float32", Region.psum)


@maskable
def total(x: Tile, axis: int, *, dtype: Any = None) -> Tile:
    """nl.sum: over the free axes from `axis` on, which stay with size 1."""
    if axis != 1 or x.ndim != 2:
        raise NotImplementedError(f"nki.language.sum of {x.shape} over {axis}")
    return tile_of(OPERATORS["add"].over(x.values(), (1,)), dtype or x.dtype)


@maskable
def loop_reduce(x: Tile, op: Any, loop_indices: Any, *, dtype: Any = None) -> LoopReduced:
    return LoopReduced(x if dtype is None else copy(x, dtype=dtype), operator_of(op))


def num_programs(axes: int) -> int:
    return program().grid[axes]


def _wrap(data: Array, dtype: DType, region: Region) -> Tile:
    return Tile(data, dtype, region)


def _check(grid: tuple[int, ...]) -> None:
    """A grid may have any number of programs."""


def jit(function: Any = None, *, mode: str | None = None) -> Any:
    """nki.jit, with or without arguments."""
    return jit if function is None else Kernel(function, _wrap, _check)


def _function(name: str) -> Function:
    op = OPERATORS[name]
    return Function(op.name, op.binary, op.unary, op.reduce)


NAMES: dict[str, Any] = {
    **USABLE,
    **NAMED,
    **{name: _function(name) for name in ("add", "subtract", "multiply", "maximum")},
    **{name: OPERATORS[name] for name in ("exp", "log")},
    **{region.value: region for region in Region},
    "tile_size": tile_size,
    "fp32": SimpleNamespace(min=float(np.finfo(np.float32).min)),
    "par_dim": Partitions,
    "ndarray": ndarray,
    "full": full,
    "zeros": zeros,
    "load": load,
    "load_transpose2d": load_transpose2d,
    "store": store,
    "copy": copy,
    "matmul": matmul,
    "sum": total,
    "loop_reduce": loop_reduce,
    "mgrid": np.mgrid,
    "ds": ds,
    "affine_range": range,
    "sequential_range": range,
    "program_id": program_id,
    "program_ndim": program_ndim,
    "num_programs": num_programs,
}
