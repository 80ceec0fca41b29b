"""A case as torch sees it: tensors and options, the call itself, and its gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

import xattn

# Runs an op with all its arguments: what a backend may replace (see `running/target.py`).
Execute = Callable[..., Any]


@dataclass(frozen=True)
class Call:
    """op: the name of a function of xattn. tensors: its tensor arguments by name. options: all others but backend.
    wanted: names of the tensors whose gradients are asked for. incoming: gradients of the results, by name."""

    op: str
    tensors: Mapping[str, Tensor]
    options: Mapping[str, Any]
    wanted: tuple[str, ...] = ()
    incoming: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def arguments(self) -> dict[str, Any]:
        """Every argument but backend, with gradients required where they are asked for."""
        leaves = {
            name: tensor.detach().requires_grad_() if name in self.wanted else tensor
            for name, tensor in self.tensors.items()
        }
        return {**leaves, **self.options}

    def with_tensors(self, **tensors: Tensor) -> Call:
        return replace(self, tensors={**self.tensors, **tensors})

    def run(self, backend: str, execute: Execute) -> dict[str, Tensor]:
        """Results by name, in their own layouts: out, lse where it is asked for, and dq, dk, ... likewise."""
        arguments = self.arguments
        with torch.set_grad_enabled(bool(self.wanted)):
            returned = execute(self.op, arguments, backend)
            results = {"out": returned}
            if isinstance(returned, xattn.AttentionOutput):
                results = {"out": returned.out, "lse": returned.lse}
            if self.wanted:
                leaves = [arguments[name] for name in self.wanted]
                sources = [results[name] for name in self.incoming]
                found = torch.autograd.grad(sources, leaves, list(self.incoming.values()))
                results |= {f"d{name}": grad for name, grad in zip(self.wanted, found, strict=True)}
        return {name: tensor.detach() for name, tensor in results.items()}


def execute(op: str, arguments: Mapping[str, Any], backend: str) -> Any:
    """The public call, eagerly."""
    return getattr(xattn, op)(**arguments, backend=backend)
