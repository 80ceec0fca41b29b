"""The operators that kernels name: nl.add, nl.exp, ... Engines apply them to float32.

Sources: "Supported Math Operators" and "Supported Activation Functions" in nki/api/nki.api.shared.rst of the AWS Neuron
documentation (SDK 2.32).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from xattn_elsewhere.nki.emulation.dtypes import Array


@dataclass(frozen=True)
class Operator:
    """binary: of two operands, an ALU's. unary: of one, an activation. reduce: over axes, where it may reduce."""

    name: str
    binary: Callable[[Any, Any], Any] | None = None
    unary: Callable[[Any], Any] | None = None
    reduce: Callable[..., Any] | None = None

    def __call__(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError(f"nki.language.{self.name} is emulated as an operator, not as a call")

    def between(self, left: Any, right: Any) -> Array:
        if self.binary is None:
            raise NotImplementedError(f"nki.language.{self.name} is not emulated as an operator of two operands")
        return np.asarray(self.binary(left, right), np.float32)

    def of(self, data: Array) -> Array:
        if self.unary is None:
            raise NotImplementedError(f"nki.language.{self.name} is not emulated as an activation function")
        return np.asarray(self.unary(data), np.float32)

    def over(self, data: Array, axes: tuple[int, ...]) -> Array:
        """Reduced over `axes`, which stay with size 1."""
        if self.reduce is None:
            raise NotImplementedError(f"nki.language.{self.name} is not emulated as a reduction")
        return np.asarray(self.reduce(data, axis=axes, keepdims=True), np.float32)


def _log(data: Array) -> Array:
    """NaN outside of [2^-64, 2^64], where the Scalar Engine's polynomials mean nothing."""
    valid = (data >= 2.0**-64) & (data <= 2.0**64)
    return np.where(valid, np.log(np.where(valid, data, 1)), np.float32(np.nan))


OPERATORS = {
    each.name: each
    for each in (
        Operator("add", np.add, reduce=np.sum),
        Operator("subtract", np.subtract),
        Operator("multiply", np.multiply, reduce=np.prod),
        Operator("maximum", np.maximum, reduce=np.max),
        Operator("minimum", np.minimum, reduce=np.min),
        Operator("equal", np.equal),
        Operator("not_equal", np.not_equal),
        Operator("less", np.less),
        Operator("less_equal", np.less_equal),
        Operator("greater", np.greater),
        Operator("greater_equal", np.greater_equal),
        Operator("copy", unary=lambda data: data),
        Operator("exp", unary=np.exp),
        Operator("log", unary=_log),
        # Named by kernel files as they are imported; none of the attention kernels uses them.
        *(Operator(name) for name in ("silu", "gelu", "gelu_apprx_tanh", "gelu_apprx_sigmoid")),
    )
}

# What the legacy kernels pass.
NUMPY: dict[Any, Operator] = {
    np.add: OPERATORS["add"],
    np.subtract: OPERATORS["subtract"],
    np.multiply: OPERATORS["multiply"],
    np.max: OPERATORS["maximum"],
    np.min: OPERATORS["minimum"],
    np.exp: OPERATORS["exp"],
    np.log: OPERATORS["log"],
}


def operator_of(given: Any) -> Operator:
    if isinstance(given, Operator):
        return given
    if given in NUMPY:
        return NUMPY[given]
    raise NotImplementedError(f"the operator {given!r} is not emulated")
