"""nki.isa, the legacy namespace: what AWS's flash attention kernels use of it. The compiler moves a tile from PSUM to
SBUF where an engine does not reach it.

Source: general/nki/api/nki.isa of the AWS Neuron documentation of SDK 2.26.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from xattn_elsewhere.nki.emulation.isa.target import NcVersion, get_nc_version
from xattn_elsewhere.nki.emulation.isa.tensor import product
from xattn_elsewhere.nki.emulation.isa.vector import reduced
from xattn_elsewhere.nki.emulation.memory import PARTITIONS
from xattn_elsewhere.nki.emulation.neuronxcc.language import maskable
from xattn_elsewhere.nki.emulation.neuronxcc.tile import Tile, promoted, tile_of
from xattn_elsewhere.nki.emulation.operators import operator_of
from xattn_elsewhere.nki.emulation.tensor import LimitError, Region, operand


@maskable
def nc_matmul(stationary: Tile, moving: Tile) -> Tile:
    """stationary.T @ moving as a float32 tile in PSUM."""
    return tile_of(product("nc_matmul", stationary, moving), "float32", Region.psum)


@maskable
def nc_transpose(data: Tile) -> Tile:
    if data.ndim != 2 or max(data.shape) > PARTITIONS:
        raise LimitError(f"nki.isa.nc_transpose of {data.shape}")
    return tile_of(data.values().T, data.dtype, Region.psum)


@maskable
def dma_transpose(data: Tile) -> Tile:
    if data.ndim != 2:
        raise NotImplementedError(f"nki.isa.dma_transpose of {data.shape}")
    return tile_of(data.values().T, data.dtype)


@maskable
def tensor_copy(src: Tile, *, dtype: Any = None) -> Tile:
    return tile_of(src.values(), dtype or src.dtype)


def _activated(op: Any, data: Tile, bias: Any, scale: float) -> Any:
    result = data.values() * operand(scale, data, "nki.isa.activation")
    if bias is not None:
        result = result + operand(bias, data, "nki.isa.activation")
    return operator_of(op).of(result)


@maskable
def activation(op: Any, data: Tile, *, bias: Any = None, scale: float = 1.0, dtype: Any = None) -> Tile:
    """op(data * scale + bias)"""
    return tile_of(_activated(op, data, bias, scale), dtype or data.dtype)


@maskable
def activation_reduce(
    op: Any,
    data: Tile,
    *,
    reduce_op: Any,
    reduce_res: Tile,
    bias: Any = None,
    scale: float = 1.0,
    dtype: Any = None,
) -> Tile:
    """As activation, and its sum over the free axes to reduce_res, from before it is rounded."""
    if operator_of(reduce_op).name != "add":
        raise LimitError(f"nki.isa.activation_reduce sums, and does not reduce by {operator_of(reduce_op).name}")
    result = _activated(op, data, bias, scale)
    reduce_res.write(reduced(reduce_op, result))
    return tile_of(result, dtype or data.dtype)


@maskable
def tensor_reduce(op: Any, data: Tile, axis: Sequence[int], *, dtype: Any = None, negate: bool = False) -> Tile:
    if tuple(axis) != tuple(range(1, data.ndim)):
        raise NotImplementedError(f"nki.isa.tensor_reduce of {data.shape} over {axis}")
    result = reduced(op, data.values())
    return tile_of(-result if negate else result, dtype or data.dtype)


@maskable
def tensor_partition_reduce(op: Any, data: Tile, *, dtype: Any = None) -> Tile:
    return tile_of(operator_of(op).over(data.values(), (0,)), dtype or data.dtype)


@maskable
def scalar_tensor_tensor(*, data: Tile, op0: Any, operand0: Any, op1: Any, operand1: Tile, dtype: Any = None) -> Tile:
    """(data <op0> operand0) <op1> operand1"""
    if data.shape != operand1.shape:
        raise LimitError(f"nki.isa.scalar_tensor_tensor of {data.shape} and {operand1.shape}")
    first = operator_of(op0).between(data.values(), operand(operand0, data, "nki.isa.scalar_tensor_tensor"))
    return tile_of(operator_of(op1).between(first, operand1.values()), dtype or promoted(data, operand1))


@maskable
def affine_select(*, pred: Any, on_true_tile: Tile, on_false_value: float, dtype: Any = None) -> Tile:
    if np.shape(pred) != on_true_tile.shape:
        raise LimitError(f"nki.isa.affine_select of {on_true_tile.shape} by {np.shape(pred)}")
    return tile_of(np.where(pred, on_true_tile.values(), np.float32(on_false_value)), dtype or on_true_tile.dtype)


NAMES: dict[str, Any] = {
    "nc_version": NcVersion,
    "get_nc_version": get_nc_version,
    "nc_matmul": nc_matmul,
    "nc_transpose": nc_transpose,
    "dma_transpose": dma_transpose,
    "tensor_copy": tensor_copy,
    "activation": activation,
    "activation_reduce": activation_reduce,
    "tensor_reduce": tensor_reduce,
    "tensor_partition_reduce": tensor_partition_reduce,
    "scalar_tensor_tensor": scalar_tensor_tensor,
    "affine_select": affine_select,
}
