"""bfloat16 and FP8 in Triton's interpreter, which keeps both as integers.

Triton, up to 3.8, computes with their bits as with numbers, or cuts off the low half of a float32 where it should
round. Here they are float32 while an operation lasts, and rounded once, to nearest and ties to even, as on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import triton.language as tl
from numpy.typing import NDArray
from triton.runtime import interpreter

Array = NDArray[Any]

FP8 = {
    tl.float8e5: torch.float8_e5m2,
    tl.float8e5b16: torch.float8_e5m2fnuz,
    tl.float8e4nv: torch.float8_e4m3fn,
    tl.float8e4b8: torch.float8_e4m3fnuz,
}
_BITS = (tl.bfloat16, *FP8)


def widened(bits: Array, dtype: Any) -> Array:
    """Numbers that are kept as bits, as float32."""
    wide: Array
    if dtype == tl.bfloat16:
        wide = (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)
    else:
        wide = torch.from_numpy(np.array(bits, dtype=np.uint8)).view(FP8[dtype]).float().numpy()
    return wide


def narrowed(values: Array, dtype: Any) -> Array:
    """float32 rounded to a dtype, as its bits."""
    values = np.ascontiguousarray(values, dtype=np.float32)
    if dtype != tl.bfloat16:
        found: Array = torch.from_numpy(values.copy()).to(FP8[dtype]).view(torch.uint8).numpy()
        return found
    bits = values.view(np.uint32)
    up = np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    rounded: Array = ((bits + up) >> np.uint32(16)).astype(np.uint16)
    # A NaN may carry into the sign and become 0.
    return np.where(np.isnan(values), np.uint16(0x7FC0), rounded)


def install() -> None:
    """Change the interpreter in this process."""
    builder = interpreter.InterpreterBuilder
    builder.create_dot = _dot
    builder.get_bf16 = _bf16
    builder.cast_impl = _cast(builder.cast_impl)
    for name in ("binary_op", "unary_op", "ternary_op"):
        setattr(builder, name, _in_float32(getattr(builder, name)))
    builder.create_fma = _fma
    for reduction in (interpreter.ReduceOps, interpreter.ScanOps):
        reduction.apply_impl = _reduced_in_float32(reduction.apply_impl)
    interpreter._convert_float = _convert_float(interpreter._convert_float)
    interpreter._patch_lang_core = _with_names_of_fp8(interpreter._patch_lang_core)


def _floats(handle: Any) -> Array:
    data: Array = handle.data
    return widened(data, handle.dtype.scalar) if handle.dtype.scalar in _BITS else data


def _handle(values: Array, dtype: Any) -> Any:
    """What was computed in float32, as the dtype is kept; what is True or False stays so."""
    kept = narrowed(values, dtype) if dtype in _BITS and values.dtype != np.bool_ else values
    return interpreter.TensorHandle(kept, dtype)


def _convert_float(original: Callable[..., Array]) -> Callable[..., Array]:
    def convert(data: Array, source: Any, target: Any, rounding: Any) -> Array:
        toward_0 = rounding not in (None, interpreter._ir.ROUNDING_MODE.RTNE)
        if toward_0 or not {source, target} & set(_BITS):
            return original(data, source, target, rounding)
        wide = widened(data, source) if source in _BITS else data
        if target in _BITS:
            return narrowed(wide, target)
        bits = f"uint{target.primitive_bitwidth}"
        exact: Array = wide.astype(interpreter._get_np_dtype(target)).view(bits)
        return exact

    return convert


def _cast(original: Callable[..., Any]) -> Callable[..., Any]:
    def cast(builder: Any, source: Any, target: Any) -> Any:
        if not {source.dtype.scalar, target.scalar} & set(_BITS):
            return original(builder, source, target)
        wide = _floats(source)
        kept = target.scalar in _BITS
        data = narrowed(wide, target.scalar) if kept else wide.astype(interpreter._get_np_dtype(target))
        return interpreter.TensorHandle(data, target.scalar)

    return cast


def _dot(_: Any, a: Any, b: Any, d: Any, *__: Any) -> Any:
    """float32 products and sums, as the matrix units have them."""
    product = np.matmul(_floats(a).astype(np.float32), _floats(b).astype(np.float32))
    return interpreter.TensorHandle(product + d.data, d.dtype.scalar)


def _bf16(_: Any, value: float) -> Any:
    return interpreter.TensorHandle(narrowed(np.array([value]), tl.bfloat16), tl.bfloat16)


def _fma(_: Any, x: Any, y: Any, z: Any) -> Any:
    return _handle(_floats(x) * _floats(y) + _floats(z), z.dtype.scalar)


def _in_float32(original: Callable[..., Any]) -> Callable[..., Any]:
    def operate(builder: Any, *arguments: Any) -> Any:
        *handles, operation = arguments
        bitwise = operation in (np.bitwise_and, np.bitwise_or, np.bitwise_xor, np.where)
        if bitwise or not any(handle.dtype.scalar in _BITS for handle in handles):
            return original(builder, *arguments)
        return _handle(operation(*map(_floats, handles)), handles[-1].dtype.scalar)

    return operate


def _reduced_in_float32(original: Callable[..., Any]) -> Callable[..., Any]:
    def reduce(self: Any, values: tuple[Any, ...]) -> Any:
        if not any(value.dtype.scalar in _BITS for value in values):
            return original(self, values)
        wide = tuple(
            self.to_tensor(_floats(value.handle), tl.float32) if value.dtype.scalar in _BITS else value
            for value in values
        )
        found = original(self, wide)
        several = isinstance(found, (tuple, list))
        results = [_as(self, each, values[0]) for each in (found if several else (found,))]
        return results if several else results[0]

    return reduce


def _as(reduction: Any, found: Any, like: Any) -> Any:
    """A sum as the values were; a place among them stays what it is."""
    if found.dtype.scalar != tl.float32:
        return found
    data = narrowed(found.handle.data, like.dtype.scalar)
    return reduction.to_tensor(data if found.shape else data[0], like.dtype.scalar)


def _with_names_of_fp8(original: Callable[..., None]) -> Callable[..., None]:
    """Two of the four have no name in the interpreter's `to_ir`."""
    found = {"fp8e4b8": "get_fp8e4b8_ty", "fp8e5b16": "get_fp8e5b16_ty"}

    def patch(language: Any, scope: Any) -> None:
        original(language, scope)
        to_ir = language.dtype.to_ir

        def named(dtype: Any, builder: Any) -> Any:
            return getattr(builder, found[dtype.name])() if dtype.name in found else to_ir(dtype, builder)

        scope.set_attr(language.dtype, "to_ir", named)

    return patch
