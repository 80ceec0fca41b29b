"""What Triton's interpreter lacks of Triton's language: `and` and `or` between tensors, fast math, and FP8.

`and` of two tensors is Python's in there: all of the second, whatever the first holds. FP8 is bytes, which it adds and
multiplies as such.
"""

from __future__ import annotations

import ast
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import triton.language as tl
from numpy.typing import NDArray
from triton.language.extra import libdevice
from triton.runtime import interpreter

Array = NDArray[Any]

# By Triton's name of a type that is bytes here, torch's.
_FP8 = {"fp8e4nv": torch.float8_e4m3fn, "fp8e4b8": torch.float8_e4m3fnuz}


def install() -> None:
    """Change Triton's interpreter in this process."""
    transformer = interpreter.ASTTransformer
    transformer.visit_BoolOp = _visit_bool_op
    transformer.visit_Assign = _values_too(transformer.visit_Assign)
    # Kernels find the names of this module.
    interpreter.__dict__["_logical"] = _logical
    # Kernels import them by name, so before any of them does.
    libdevice.fast_expf = lambda x: tl.exp(x)
    libdevice.fast_dividef = lambda x, y: x / y
    builder = interpreter.InterpreterBuilder
    builder.create_fp_to_fp = _from_fp8(builder.create_fp_to_fp)
    interpreter._patch_lang_core = _with_fnuz(interpreter._patch_lang_core)


def _visit_bool_op(self: ast.NodeTransformer, node: ast.BoolOp) -> ast.AST:
    """`a and b` as _logical(True, lambda: a, lambda: b)."""
    self.generic_visit(node)
    nothing = ast.arguments(posonlyargs=[], args=[], kwonlyargs=[], kw_defaults=[], defaults=[])
    parts: list[ast.expr] = [ast.Lambda(args=nothing, body=value) for value in node.values]
    both = ast.Constant(value=isinstance(node.op, ast.And))
    return ast.Call(func=ast.Name(id="_logical", ctx=ast.Load()), args=[both, *parts], keywords=[])


def _values_too(original: Callable[..., Any]) -> Callable[..., Any]:
    """It does not look into what is assigned."""

    def visit(self: ast.NodeTransformer, node: ast.Assign) -> Any:
        node.value = self.visit(node.value)
        return original(self, node)

    return visit


def _logical(both: bool, *parts: Callable[[], Any]) -> Any:
    """Of tensors element by element; of what the compiler knows, Python's, which need not look at the rest."""
    found = parts[0]()
    for part in parts[1:]:
        if isinstance(found, tl.tensor):
            found = found.logical_and(part()) if both else found.logical_or(part())
        elif bool(getattr(found, "value", found)) == both:
            found = part()
    return found


@cache
def _numbers(name: str) -> Array:
    """The number behind each byte, as float32."""
    numbers: Array = torch.arange(256, dtype=torch.uint8).view(_FP8[name]).float().numpy()
    return numbers


def is_fp8(dtype: Any) -> bool:
    return dtype.name in _FP8


def widened(handle: Any) -> Array:
    """FP8 as float32."""
    wide: Array = _numbers(handle.dtype.scalar.name)[handle.data]
    return wide


def _from_fp8(original: Callable[..., Any]) -> Callable[..., Any]:
    def convert(builder: Any, source: Any, target: Any, *rest: Any) -> Any:
        if not is_fp8(source.dtype.scalar):
            return original(builder, source, target, *rest)
        wide = interpreter.TensorHandle(widened(source), tl.float32)
        return wide if target.scalar == tl.float32 else original(builder, wide, target, *rest)

    return convert


def _with_fnuz(original: Callable[..., None]) -> Callable[..., None]:
    """It does not know AMD's own FP8 by its name."""

    def patch(language: Any, scope: Any) -> None:
        original(language, scope)
        known = language.dtype.to_ir
        scope.set_attr(
            language.dtype,
            "to_ir",
            lambda self, builder: builder.get_fp8e4b8_ty() if self.name == "fp8e4b8" else known(self, builder),
        )

    return patch
