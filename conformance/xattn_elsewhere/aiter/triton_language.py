"""Triton's language where its interpreter departs from the compiler."""

from __future__ import annotations

import ast
from collections.abc import Callable
from threading import RLock
from typing import Any

import numpy as np
import triton.language as tl
from triton.language.extra import libdevice
from triton.runtime import interpreter


def install() -> None:
    """Change the interpreter in this process."""
    transformer = interpreter.ASTTransformer
    transformer.visit_BoolOp = _visit_bool_op
    transformer.visit_Assign = _values_too(transformer.visit_Assign)
    # A rewritten kernel finds it there.
    interpreter._xattn_bool_op = _bool_op
    interpreter._implicit_cvt = _arguments(interpreter._implicit_cvt)
    # Stubs that the compiler fills in by the device.
    libdevice.fast_expf = lambda x: tl.exp(x)
    libdevice.fast_dividef = lambda x, y: x / y
    interpreter.ReduceOps.apply_impl = _with_xor(interpreter.ReduceOps.apply_impl)
    interpreter._patch_lang = _once(interpreter._patch_lang)
    executor = interpreter.GridExecutor
    executor.__call__ = _one_at_a_time(executor.__call__)


def _visit_bool_op(transformer: Any, node: ast.BoolOp) -> ast.expr:
    """`x and y` of tensors is logical, element by element: Python would take the one or the other."""
    transformer.generic_visit(node)
    none = ast.arguments(posonlyargs=[], args=[], kwonlyargs=[], kw_defaults=[], defaults=[])
    operands: list[ast.expr] = [ast.Lambda(args=none, body=value) for value in node.values]
    name = "logical_and" if isinstance(node.op, ast.And) else "logical_or"
    function = ast.Name(id="_xattn_bool_op", ctx=ast.Load())
    return ast.Call(func=function, args=[ast.Constant(value=name), *operands], keywords=[])


def _values_too(original: Callable[..., Any]) -> Callable[..., Any]:
    """It does not look into what is assigned."""

    def visit(self: ast.NodeTransformer, node: ast.Assign) -> Any:
        node.value = self.visit(node.value)
        return original(self, node)

    return visit


def _bool_op(name: str, *operands: Callable[[], Any]) -> Any:
    found = operands[0]()
    for operand in operands[1:]:
        if isinstance(found, tl.tensor):
            semantic = interpreter.interpreter_semantic
            found = getattr(semantic, name)(found, semantic.to_tensor(operand()))
        elif bool(found) == (name == "logical_and"):  # what the compiler knows decides without the rest
            found = operand()
    return found


def _arguments(original: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Of a launch: a bool is int1, and a float is float32, which is not rounded to the dtype of what it meets."""

    def convert(argument: Any) -> Any:
        if isinstance(argument, bool):
            return tl.tensor(interpreter.TensorHandle(np.array([argument]), tl.int1), tl.int1)
        if isinstance(argument, float):
            handle = interpreter.TensorHandle(np.array([argument], dtype=np.float32), tl.float32)
            return tl.tensor(handle, tl.float32)
        return original(argument)

    return convert


def _with_xor(original: Callable[..., Any]) -> Callable[..., Any]:
    """The reduction that tl.flip is made of, at once: element by element it takes most of a kernel's time."""

    def reduce(self: Any, values: tuple[Any, ...]) -> Any:
        if self.combine_fn != tl.standard._xor_combine:
            return original(self, values)
        found = np.bitwise_xor.reduce(values[0].handle.data, axis=self.axis, keepdims=self.keep_dims)
        return self.to_tensor(found, values[0].dtype)

    return reduce


def _once(original: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The language is changed for a launch, once, and changed back after it. Triton changes it again for each function
    that the kernel calls, and leaves it so: every launch of a process would take longer than the one before."""
    changed: list[Any] = []
    undo: list[Callable[[], None]] = []

    def restore() -> None:
        while undo:
            undo.pop()()
        changed.clear()

    def patch(function: Any) -> Any:
        modules = [each for each in function.__globals__.values() if each is tl or each is tl.core]
        if changed and all(module in changed for module in modules):
            return interpreter._LangPatchScope()
        scope = original(function)
        changed.extend(modules)
        undo.append(scope.restore)
        scope.restore = restore  # which the launch alone asks for
        return scope

    return patch


def _one_at_a_time(original: Callable[..., Any]) -> Callable[..., Any]:
    """The interpreter changes triton.language while a kernel runs, for the whole process."""
    lock = RLock()

    def launch(*args: Any, **options: Any) -> Any:
        with lock:
            return original(*args, **options)

    return launch
