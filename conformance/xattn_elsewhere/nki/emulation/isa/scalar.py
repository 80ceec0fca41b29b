"""The Scalar Engine: nki.isa.activation, nki.isa.activation_reduce. In float32."""

from __future__ import annotations

from typing import Any

from xattn_elsewhere.nki.emulation.dtypes import Array, float32
from xattn_elsewhere.nki.emulation.isa.target import NcVersion, get_nc_version, same_size, tiles
from xattn_elsewhere.nki.emulation.isa.vector import reduced
from xattn_elsewhere.nki.emulation.operators import operator_of
from xattn_elsewhere.nki.emulation.tensor import LimitError, Tensor, operand


def _activated(call: str, dst: Any, op: Any, data: Any, bias: Any, scale: Any) -> Array:
    """op(data * scale + bias)"""
    tiles(call, dst, data)
    same_size(call, dst, data)
    if isinstance(scale, Tensor) and scale.dtype != float32:
        raise LimitError(f"nki.isa.{call}: a scale of {scale.dtype}; it takes float32")
    if bias is not None and not isinstance(bias, Tensor) and get_nc_version() < NcVersion.gen3:
        raise LimitError(f"nki.isa.{call}: a scalar bias on a NeuronCore-v2")
    result = data.values() * operand(scale, data, f"nki.isa.{call}")
    if bias is not None:
        result = result + operand(bias, data, f"nki.isa.{call}")
    return operator_of(op).of(result)


def activation(dst: Any, op: Any, data: Any, bias: Any = None, scale: Any = 1.0, name: str | None = None) -> None:
    dst.write(_activated("activation", dst, op, data, bias, scale))


def activation_reduce(
    dst: Any,
    op: Any,
    data: Any,
    reduce_op: Any,
    reduce_res: Any,
    bias: Any = None,
    scale: Any = 1.0,
    name: str | None = None,
) -> None:
    """As activation, and its sum over all free axes, from before it is rounded to dst."""
    result = _activated("activation_reduce", dst, op, data, bias, scale)
    if operator_of(reduce_op).name != "add":
        raise LimitError(f"nki.isa.activation_reduce sums, and does not reduce by {operator_of(reduce_op).name}")
    tiles("activation_reduce", dst, reduce_res)
    dst.write(result)
    reduce_res.write(reduced(reduce_op, result))
