"""A call of `attention` as data, and the layouts that its tensors may have."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from xattn_conformance.ops.attention.problem import Problem

from xattn.plugin import dtype_name


@dataclass(frozen=True)
class AttentionCall:
    """The arguments of one call: `options` are those that are no tensors."""

    q: Tensor
    k: Tensor
    v: Tensor
    options: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)

    @property
    def arguments(self) -> dict[str, Any]:
        """Every keyword argument."""
        return {**self.options, **self.tensors}

    @property
    def floats(self) -> dict[str, Tensor]:
        """The tensors that can have a gradient."""
        named = {"q": self.q, "k": self.k, "v": self.v, **self.tensors}
        return {name: named[name] for name in ("q", "k", "v", "bias", "sinks") if name in named}

    @property
    def problem(self) -> Problem:
        """The call as the oracle takes it."""
        kept = ("causal", "window", "align", "scale", "softcap")
        options = {name: value for name, value in self.options.items() if name in kept}
        arrays: dict[str, Any] = {name: array(tensor) for name, tensor in self.tensors.items()}
        return Problem(
            dtype=dtype_name(self.q.dtype), q=array(self.q), k=array(self.k), v=array(self.v), **options, **arrays
        )

    def requiring_grad(self, names: set[str]) -> AttentionCall:
        """The same call on leaves of the same strides, of which those named require a gradient."""
        leaf = {name: tensor.detach().requires_grad_(name in names) for name, tensor in self.floats.items()}
        tensors = {name: leaf.get(name, tensor) for name, tensor in self.tensors.items()}
        return replace(self, q=leaf["q"], k=leaf["k"], v=leaf["v"], tensors=tensors)

    def __repr__(self) -> str:
        def text(tensor: Tensor) -> str:
            dtype = str(tensor.dtype).removeprefix("torch.")
            values = f" {tensor.tolist()}" if tensor.numel() <= 12 else ""
            return f"{dtype}{tuple(tensor.shape)} strides {tensor.stride()}{values}"

        named = {"q": self.q, "k": self.k, "v": self.v, **self.tensors}
        parts = [f"{name}={text(tensor)}" for name, tensor in named.items()]
        return f"AttentionCall({', '.join([*parts, *(f'{name}={value!r}' for name, value in self.options.items())])})"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """Hypothesis would print every field; strides tell more than values."""
        printer.text(repr(self))


def array(tensor: Tensor) -> np.ndarray:
    """A tensor's values: float64 for a float tensor, else its own kind."""
    tensor = tensor.detach()
    values: np.ndarray = (tensor.double() if tensor.is_floating_point() else tensor).numpy().copy()
    return values


# Memory layouts of (batch, seqlen, nheads, headdim) values, all with a dense last dimension.


def _transposed(values: Tensor) -> Tensor:
    return values.transpose(1, 2).contiguous().transpose(1, 2)


def _seqlen_first(values: Tensor) -> Tensor:
    return values.transpose(0, 1).contiguous().transpose(0, 1)


def _sliced(values: Tensor) -> Tensor:
    """A window of a larger tensor: an odd storage offset and no stride that is a product of sizes."""
    batch, seqlen, nheads, headdim = values.shape
    whole = values.new_full((batch, seqlen, nheads + 2, headdim + 3), torch.nan)
    whole[:, :, 1 : nheads + 1, 1 : headdim + 1] = values
    return whole[:, :, 1 : nheads + 1, 1 : headdim + 1]


def _every_other(values: Tensor) -> Tensor:
    whole = values.new_full((values.shape[0], 2 * values.shape[1], *values.shape[2:]), torch.nan)
    whole[:, ::2] = values
    return whole[:, ::2]


def _expanded(values: Tensor) -> Tensor:
    """One batch row for all, at stride 0."""
    return values[:1].expand_as(values)


def _one_head(values: Tensor) -> Tensor:
    """One head for all, at stride 0."""
    return values[:, :, :1].expand_as(values)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "bsnh": lambda values: values,
    "bnsh": _transposed,
    "sbnh": _seqlen_first,
    "sliced": _sliced,
    "every other": _every_other,
    "expanded": _expanded,
    "one head": _one_head,
}
# Those in which every element has memory of its own.
WRITABLE = ("bsnh", "bnsh", "sbnh", "sliced", "every other")
