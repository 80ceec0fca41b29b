"""Impostors whose results are right and whose gradients are not."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import xattn
from xattn_conformance.mutants.impostor import Impostor, Where
from xattn_conformance.mutants.impostor_parts import (
    Arguments,
    Right,
    answering,
    closed,
    varied,
    with_out,
)
from xattn_conformance.ops.call import execute


class _Spent(torch.autograd.Function):
    """The first backward pass uses up what the forward kept."""

    @staticmethod
    def forward(ctx: Any, out: Tensor) -> Tensor:
        ctx.spent = False
        return out.view_as(out)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        factor, ctx.spent = (0.0 if ctx.spent else 1.0), True
        return grads[0] * factor


class _FirstElement(torch.autograd.Function):
    """Of a gradient with a stride of 0 only what lies there is read."""

    @staticmethod
    def forward(ctx: Any, out: Tensor) -> Tensor:
        return out.view_as(out)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        grad = grads[0]
        if 0 not in grad.stride():
            return grad
        read = torch.zeros(grad.shape, dtype=grad.dtype)
        read[(0,) * grad.ndim] = grad[(0,) * grad.ndim]
        return read


class _OutAlone(torch.autograd.Function):
    """The gradient through lse is looked at where one comes in for out."""

    @staticmethod
    def forward(ctx: Any, out: Tensor, lse: Tensor) -> tuple[Tensor, Tensor]:
        return out.view_as(out), lse.view_as(lse)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        dout, dlse = grads
        return dout, dlse * bool(dout.any())


class _Second(torch.autograd.Function):
    """Its gradient, which is what comes in, is a constant."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0].detach()


def _cut(function: Any, *names: str) -> Any:
    """An impostor of whose gradients those of some inputs are constants."""

    def run(op: str, arguments: Arguments, backend: str) -> Any:
        return execute(op, {**arguments, **{name: function.apply(arguments[name]) for name in names}}, backend)

    return closed(lambda: run)


def _spent(arguments: Arguments, right: Right) -> Any:
    return with_out(right(), _Spent.apply)


def _first_element(arguments: Arguments, right: Right) -> Any:
    return with_out(right(), _FirstElement.apply)


def _out_alone(arguments: Arguments, right: Right) -> Any:
    returned = right()
    return xattn.AttentionOutput(*_OutAlone.apply(returned.out, returned.lse))  # type: ignore[no-untyped-call]


def _all_or_none(arguments: Arguments, right: Right) -> Any:
    """Gradients are computed where q, k and v all need one; else the graph ends."""
    needed = [arguments[name].requires_grad for name in ("q", "k", "v")]
    return with_out(right(), lambda out: out if all(needed) or not any(needed) else out.detach())


GRADIENTS = (
    answering("all-or-none", "one input alone gets a gradient of 0", lambda: _all_or_none, varied("some")),
    answering("second-pass-0", "a second backward pass gives 0", lambda: _spent, varied("twice")),
    answering(
        "dout-stride-0",
        "of a dout with strides of 0 one element is read",
        lambda: _first_element,
        varied("expanded", also=lambda case: bool(case.grads) and case.family == "shared"),
    ),
    answering(
        "dlse-alone-ignored",
        "a gradient that comes in through lse alone is ignored",
        lambda: _out_alone,
        Where(also=lambda case: case.family == "through_lse"),
    ),
    Impostor("second-0", "second derivatives are 0, in silence", _cut(_Second, "q", "k", "v"), varied("second")),
    Impostor("second-of-q-alone", "the gradients of k and v are constants", _cut(_Second, "k", "v"), varied("second")),
)
