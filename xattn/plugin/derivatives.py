"""Gradients that a kernel computes have no derivative of their own: asking for one must raise, and not give zeros.

torch's once_differentiable raises only where the gradient that comes in requires one itself. Elsewhere it returns
constants, and a second derivative lacks their part in silence.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

Grads = Sequence[Tensor | None]
# The backward of an autograd function: (ctx, *gradients that come in) -> the gradient of each of its inputs.
Backward = Callable[..., Grads]


def first_alone(backend: str) -> Callable[[Backward], Backward]:
    """Decorates the backward of an autograd function that calls a kernel and has saved its inputs. What it returns
    cannot be differentiated: that raises NotImplementedError, which names the backend."""

    def decorate(backward: Backward) -> Backward:
        @functools.wraps(backward)
        def alone(ctx: Any, *grads: Tensor | None) -> Grads:
            with torch.no_grad():
                found = backward(ctx, *grads)
            return _final(backend, found, (*grads, *ctx.saved_tensors))

        return alone

    return decorate


def guarded(backend: str, *inputs: Tensor) -> tuple[Tensor, ...]:
    """The inputs, for a vendor's own autograd function: their gradients are as those of `first_alone`."""
    # torch.compile has no second derivatives, and says so.
    if torch.compiler.is_compiling():
        return inputs
    wanted = [x for x in inputs if x.requires_grad]
    views = iter(_Guard.apply(backend, *wanted) if wanted else ())  # type: ignore[no-untyped-call]
    return tuple(next(views) if x.requires_grad else x for x in inputs)


def _final(backend: str, grads: Grads, sources: Grads) -> Grads:
    """The gradients as a function of the sources that raises when it is differentiated."""
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return grads
    made = [x for x in grads if x is not None]
    traced = [x for x in sources if x is not None and x.requires_grad]
    final = iter(_Final.apply(backend, len(made), *made, *traced))  # type: ignore[no-untyped-call]
    return tuple(None if x is None else next(final) for x in grads)


class _Guard(Function):
    """(backend, *tensors) -> views of the tensors."""

    @staticmethod
    def forward(backend: str, *inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(x.view_as(x) for x in inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.backend = inputs[0]
        ctx.save_for_backward(*inputs[1:])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        return None, *_final(ctx.backend, grads, ctx.saved_tensors)


class _Final(Function):
    """(backend, count, *tensors) -> views of so many of the tensors, the first, as a function of all."""

    @staticmethod
    def forward(backend: str, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(x.view_as(x) for x in tensors[:count])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.backend = inputs[0]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        raise NotImplementedError(f'{ctx.backend} has no second derivative; use backend="reference"')
