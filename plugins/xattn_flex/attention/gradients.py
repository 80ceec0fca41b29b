"""Gradients of what torch.compile made, which may be asked for more than once.

torch lets the backward of a compiled function run once, without retain_graph: it reuses what was saved. So the graph of
the compiled function is one of its own, inside, and is made again where it is gone through again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from xattn.plugin.derivatives import first_alone
from xattn_flex.attention.compiled import same_environment

Call = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def attend(call: Call, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """What `call` returns, differentiable in q, k and v."""
    found: tuple[Tensor, Tensor] = _Attend.apply(call, q, k, v)  # type: ignore[no-untyped-call]
    return found


class _Attend(Function):
    """(call, q, k, v) -> out and lse."""

    @staticmethod
    def forward(ctx: Any, call: Call, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        ctx.call, ctx.inner = call, _inner(call, q, k, v)
        ctx.save_for_backward(q, k, v)
        ctx.set_materialize_grads(False)
        out, lse = (x.detach() for x in ctx.inner[1])
        return out, lse

    @staticmethod
    @first_alone("flex")
    def backward(ctx: Any, dout: Tensor | None, dlse: Tensor | None) -> tuple[Tensor | None, ...]:
        leaves, results = ctx.inner or _inner(ctx.call, *ctx.saved_tensors)
        ctx.inner = None
        given = [(x, grad) for x, grad in zip(results, (dout, dlse), strict=True) if grad is not None]
        if not given:
            return None, None, None, None
        wanted = [x for x in leaves if x.requires_grad]
        outputs, incoming = [x for x, _ in given], [grad for _, grad in given]
        with same_environment():
            made = iter(torch.autograd.grad(outputs, wanted, incoming, allow_unused=True))
        return None, *(next(made) if x.requires_grad else None for x in leaves)


def _inner(call: Call, *qkv: Tensor) -> tuple[list[Tensor], tuple[Tensor, Tensor]]:
    """Leaves, and what `call` makes of them."""
    leaves = [x.detach().requires_grad_(x.requires_grad) for x in qkv]
    with torch.enable_grad():
        return leaves, call(*leaves)
