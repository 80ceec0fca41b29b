"""Gradients of kernels: the first are what the kernel gives, a second derivative raises, whatever comes in."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import Function

from xattn.plugin import derivatives


class Product(Function):
    """A product with gradients that a kernel made: autograd knows nothing of them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor) -> Tensor:
        ctx.save_for_backward(x, y)
        return x * y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, y = ctx.saved_tensors
        with torch.no_grad():
            return tuple(
                grads[0] * other if need else None for other, need in zip((y, x), ctx.needs_input_grad, strict=True)
            )


class Decorated(Product):
    backward = staticmethod(derivatives.first_alone("acme")(Product.backward))  # type: ignore[assignment]


def guarded(x: Tensor, y: Tensor) -> Tensor:
    found: Tensor = Product.apply(*derivatives.guarded("acme", x, y))  # type: ignore[no-untyped-call]
    return found


WAYS = pytest.mark.parametrize("product", [Decorated.apply, guarded], ids=["decorated", "guarded"])


@WAYS
def test_first_gradients_are_the_kernels(product: Any) -> None:
    x, y = torch.randn(3, requires_grad=True), torch.randn(3, requires_grad=True)
    grads = torch.autograd.grad(product(x, y), [x, y], torch.ones(3))
    assert torch.equal(grads[0], y)
    assert torch.equal(grads[1], x)
    assert not any(grad.requires_grad for grad in grads)
    # Of one input alone.
    (grad,) = torch.autograd.grad(product(x, y.detach()), [x], torch.ones(3))
    assert torch.equal(grad, y)


@WAYS
@pytest.mark.parametrize("incoming", [False, True], ids=["constant", "with a gradient"])
def test_second_ones_raise_beside_what_has_them(product: Any, incoming: bool) -> None:
    x, y = torch.randn(3, requires_grad=True), torch.randn(3, requires_grad=True)
    out = product(x, y)
    (grad,) = torch.autograd.grad(out, [x], torch.ones(3, requires_grad=incoming), create_graph=True)
    assert torch.equal(grad, y)
    # A penalty on the gradient, beside a loss: a constant would vanish in there.
    with pytest.raises(NotImplementedError, match='acme has no second derivative; use backend="reference"'):
        torch.autograd.grad(grad.square().sum() + out.sum(), [y])
