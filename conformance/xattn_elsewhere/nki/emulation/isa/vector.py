"""The Vector Engine, in float32: element by element, over the free axes, and between partitions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from xattn_elsewhere.nki.emulation.access import NkiTensor
from xattn_elsewhere.nki.emulation.dtypes import Array, float32, int32, uint32
from xattn_elsewhere.nki.emulation.isa.target import (
    Engine,
    NcVersion,
    ReduceCmd,
    get_nc_version,
    lanes,
    one_psum,
    same_size,
    tiles,
)
from xattn_elsewhere.nki.emulation.operators import operator_of
from xattn_elsewhere.nki.emulation.tensor import LimitError, Region, Tensor, copied, operand

LOWEST = float(np.finfo(np.float32).min)
COMPARISONS = ("equal", "less", "less_equal", "greater", "greater_equal")
UNMODIFIED = 255


def tensor_copy(dst: Any, src: Any, engine: Engine = Engine.unknown, name: str | None = None) -> None:
    tiles("tensor_copy", dst, src)
    same_size("tensor_copy", dst, src)
    if engine is Engine.gpsimd and Region.psum in (dst.buffer, src.buffer):
        raise LimitError("nki.isa.tensor_copy: the GpSimd Engine does not reach PSUM")
    if engine is Engine.scalar and get_nc_version() < NcVersion.gen3:
        raise LimitError("nki.isa.tensor_copy on the Scalar Engine of a NeuronCore-v2")
    copied(dst, src)


def memset(dst: Any, value: float, engine: Engine = Engine.unknown, name: str | None = None) -> None:
    tiles("memset", dst)
    dst.write(np.full(dst.shape, value, np.float32))


def tensor_tensor(
    dst: Any, data1: Any, data2: Any, op: Any, engine: Engine = Engine.unknown, name: str | None = None
) -> None:
    tiles("tensor_tensor", dst, data1, data2)
    same_size("tensor_tensor", dst, data1, data2)
    one_psum("tensor_tensor", data1, data2)
    if {dst.dtype, data1.dtype, data2.dtype} <= {int32, uint32}:
        raise NotImplementedError("nki.isa.tensor_tensor of 32-bit integers, which are exact there")
    dst.write(operator_of(op).between(data1.values(), data2.values().reshape(data1.shape)))


def _with_operand(call: str, op: Any, data: Array, value: Any, like: Tensor, reverse: bool) -> Array:
    right = operand(value, like, f"nki.isa.{call}")
    return operator_of(op).between(right, data) if reverse else operator_of(op).between(data, right)


def _float32_operands(call: str, *operands: Any) -> None:
    for each in operands:
        if isinstance(each, NkiTensor):
            if each.dtype != float32:
                raise LimitError(f"nki.isa.{call}: an operand of {each.dtype}; it takes float32")
            lanes(call, each)


def tensor_scalar(
    dst: Any,
    data: Any,
    op0: Any,
    operand0: Any,
    reverse0: bool = False,
    op1: Any = None,
    operand1: Any = None,
    reverse1: bool = False,
    engine: Engine = Engine.unknown,
    name: str | None = None,
) -> None:
    """(data <op0> operand0) <op1> operand1"""
    tiles("tensor_scalar", dst, data)
    same_size("tensor_scalar", dst, data)
    _float32_operands("tensor_scalar", operand0, operand1)
    result = _with_operand("tensor_scalar", op0, data.values(), operand0, data, reverse0)
    if op1 is not None:
        result = _with_operand("tensor_scalar", op1, result, operand1, data, reverse1)
    dst.write(result)


def tensor_scalar_reduce(
    dst: Any,
    data: Any,
    op0: Any,
    operand0: Any,
    reduce_op: Any,
    reduce_res: Any,
    name: str | None = None,
) -> None:
    """data <op0> operand0, and its reduction over all free axes, from before it is rounded to dst."""
    tiles("tensor_scalar_reduce", dst, data, reduce_res)
    same_size("tensor_scalar_reduce", dst, data)
    _float32_operands("tensor_scalar_reduce", operand0)
    result = _with_operand("tensor_scalar_reduce", op0, data.values(), operand0, data, False)
    dst.write(result)
    reduce_res.write(reduced(reduce_op, result))


def reduced(op: Any, result: Array) -> Array:
    """Over all free axes: one element a partition."""
    return operator_of(op).over(result, tuple(range(1, result.ndim))).reshape(-1, 1)


def scalar_tensor_tensor(
    dst: Any,
    data: Any,
    op0: Any,
    operand0: Any,
    op1: Any,
    operand1: Any,
    reverse0: bool = False,
    reverse1: bool = False,
    name: str | None = None,
) -> None:
    """(data <op0> operand0) <op1> operand1, where operand1 is a tile of data's size."""
    tiles("scalar_tensor_tensor", dst, data, operand1)
    same_size("scalar_tensor_tensor", dst, data, operand1)
    one_psum("scalar_tensor_tensor", data, operand1)
    first = _with_operand("scalar_tensor_tensor", op0, data.values(), operand0, data, reverse0)
    second = operand1.values().reshape(data.shape)
    dst.write(operator_of(op1).between(second, first) if reverse1 else operator_of(op1).between(first, second))


def tensor_reduce(
    dst: Any,
    op: Any,
    data: Any,
    axis: int | Sequence[int],
    negate: bool = False,
    keepdims: bool = False,
    name: str | None = None,
) -> None:
    """Over the last axes."""
    tiles("tensor_reduce", dst, data)
    axes = (axis,) if isinstance(axis, int) else tuple(axis)
    if axes != tuple(range(data.ndim - len(axes), data.ndim)) or 0 in axes:
        raise LimitError(f"nki.isa.tensor_reduce of {data.shape} over {axes}")
    result = operator_of(op).over(data.values(), axes)
    dst.write(-result if negate else result)


def reciprocal(dst: Any, data: Any, name: str | None = None) -> None:
    tiles("reciprocal", dst, data)
    same_size("reciprocal", dst, data)
    dst.write(np.float32(1) / data.values())


def range_select(
    dst: Any,
    on_true_tile: Any,
    comp_op0: Any,
    comp_op1: Any,
    bound0: Any,
    bound1: Any,
    reduce_cmd: ReduceCmd = ReduceCmd.reset_reduce,
    reduce_res: Any = None,
    reduce_op: Any = None,
    range_start: int = 0,
    on_false_value: float = LOWEST,
    name: str | None = None,
) -> None:
    """What lies between two bounds by its place in the free dimension, and the lowest float32 elsewhere."""
    if get_nc_version() < NcVersion.gen3:
        raise LimitError("nki.isa.range_select on a NeuronCore-v2")
    if reduce_cmd is not ReduceCmd.reset_reduce:
        raise NotImplementedError(f"nki.isa.range_select with {reduce_cmd}")
    tiles("range_select", dst, on_true_tile, bound0, bound1)
    same_size("range_select", dst, on_true_tile)
    _float32_operands("range_select", bound0, bound1)
    operators = operator_of(comp_op0), operator_of(comp_op1)
    names = {each.name for each in operators}
    last = range_start + on_true_tile.size // on_true_tile.shape[0]
    if np.float32(on_false_value) != LOWEST or not names <= set(COMPARISONS) or last > 2**24:
        raise LimitError(f"nki.isa.range_select with {on_false_value}, {names}, up to {last}")
    data = on_true_tile.values().reshape(on_true_tile.shape[0], -1)
    place = np.float32(range_start) + np.arange(data.shape[1], dtype=np.float32)[None, :]
    bounds = [each.values().reshape(-1, 1) for each in (bound0, bound1)]
    inside = [operator.between(place, bound) for operator, bound in zip(operators, bounds, strict=True)]
    result = np.where((inside[0] != 0) & (inside[1] != 0), data, np.float32(LOWEST))
    dst.write(result)
    if reduce_res is not None:
        if operator_of(reduce_op).name != "maximum":
            raise LimitError(f"nki.isa.range_select reduces by maximum alone, not by {operator_of(reduce_op).name}")
        reduce_res.write(reduced(reduce_op, result))


def nc_stream_shuffle(dst: Any, src: Any, shuffle_mask: Sequence[int], name: str | None = None) -> None:
    """Partition i of each 32 gets what partition shuffle_mask[i] of the same 32 holds."""
    for each in (dst, src):
        tiles("nc_stream_shuffle", each)
    if dst.dtype != src.dtype or dst.size // dst.shape[0] != src.size // src.shape[0] or len(shuffle_mask) != 32:
        raise LimitError(f"nki.isa.nc_stream_shuffle: {src!r} to {dst!r} by {len(shuffle_mask)} places")
    result = dst.data.copy()
    for lane in range(dst.shape[0]):
        source = shuffle_mask[lane % 32]
        if source == UNMODIFIED:
            continue
        source += lane // 32 * 32
        if not 0 <= source < src.shape[0]:
            raise LimitError(f"nki.isa.nc_stream_shuffle reads partition {source} of {src!r}")
        result[lane] = src.data[source].reshape(result[lane].shape)
    dst.write_codes(result)
