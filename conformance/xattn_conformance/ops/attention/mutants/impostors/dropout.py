"""Impostors that drop by another chance than they say."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from xattn_conformance.case import Case
from xattn_conformance.mutants.impostor import Impostor, Where
from xattn_conformance.mutants.impostor_parts import Arguments, closed, with_out
from xattn_conformance.ops.call import Execute, execute


def dropping(name: str, wrong: str, drop: Callable[[Tensor, float], Tensor]) -> Impostor:
    """drop: out with what a mask of keys leaves of it. v is the identity: a column of out is a key's probability."""

    def made() -> Execute:
        def run(op: str, arguments: Arguments, backend: str) -> Any:
            whole = execute(op, {**arguments, "dropout_p": 0.0}, backend)
            return with_out(whole, lambda out: drop(out, arguments["dropout_p"]))

        return run

    return Impostor(
        f"dropout-{name}", wrong, closed(made), Where(also=lambda case: _of_chance(case) and not case.grads)
    )


def _of_chance(case: Case) -> bool:
    return "dropout_p" in case.options and case.since not in ("1.0", "1.1")


# Of (q, k, v) and options that take the place of the call's own.
Forward = Callable[..., Tensor]
# Of the forward, q, k, v, the gradient of out and dropout_p: an out, and the gradient that it is given.
Again = Callable[[Forward, list[Tensor], Tensor, float], tuple[Tensor, Tensor]]


class _Recomputed(torch.autograd.Function):
    """The backward computes the forward anew, from the state of the generator that this one began with."""

    @staticmethod
    def forward(ctx: Any, forward: Forward, again: Again, dropout_p: float, *qkv: Tensor) -> Tensor:
        ctx.save_for_backward(*qkv)
        ctx.made, ctx.state = (forward, again, dropout_p), torch.get_rng_state()
        return forward(*qkv)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        forward, again, dropout_p = ctx.made
        leaves = [x.detach().requires_grad_() for x in ctx.saved_tensors]
        before = torch.get_rng_state()
        torch.set_rng_state(ctx.state)
        with torch.enable_grad():
            out, dout = again(forward, leaves, grads[0], dropout_p)
        torch.set_rng_state(before)
        return None, None, None, *torch.autograd.grad(out, leaves, dout)


def recomputing(name: str, wrong: str, again: Again) -> Impostor:
    def made() -> Execute:
        def run(op: str, arguments: Arguments, backend: str) -> Any:
            def forward(*qkv: Tensor, **changed: Any) -> Tensor:
                given = {**arguments, **dict(zip("qkv", qkv, strict=True)), **changed}
                out: Tensor = execute(op, given, backend)
                return out

            qkv = (arguments[each] for each in "qkv")
            return _Recomputed.apply(forward, again, arguments["dropout_p"], *qkv)  # type: ignore[no-untyped-call]

        return run

    applies = Where(also=lambda case: _of_chance(case) and case.grads == ("qkv",) and "return_lse" not in case.options)
    return Impostor(f"dropout-{name}", wrong, closed(made), applies)


def _other_mask(forward: Forward, qkv: list[Tensor], dout: Tensor, dropout_p: float) -> tuple[Tensor, Tensor]:
    torch.rand(1)
    return forward(*qkv), dout


def _unscaled(forward: Forward, qkv: list[Tensor], dout: Tensor, dropout_p: float) -> tuple[Tensor, Tensor]:
    return forward(*qkv), dout * (1 - dropout_p)


def _undropped(forward: Forward, qkv: list[Tensor], dout: Tensor, dropout_p: float) -> tuple[Tensor, Tensor]:
    return forward(*qkv, dropout_p=0.0), dout


def _kept(out: Tensor, dropout_p: float, shape: tuple[int, ...]) -> Tensor:
    """A mask of that shape, repeated to that of out."""
    keep = (torch.rand(shape) >= dropout_p).to(out.dtype) / (1 - dropout_p)
    for dimension, (size, there) in enumerate(zip(out.shape, shape, strict=True)):
        times = [1] * out.ndim
        times[dimension] = -(-size // there)
        keep = keep.repeat(times).narrow(dimension, 0, size)
    return out * keep


def _shared_along(dimension: int, size: int = 1) -> Callable[[Tensor, float], Tensor]:
    def drop(out: Tensor, dropout_p: float) -> Tensor:
        shape = list(out.shape)
        shape[dimension] = size
        return _kept(out, dropout_p, tuple(shape))

    return drop


def _not_at_one_query(out: Tensor, dropout_p: float) -> Tensor:
    return out if out.shape[1] == 1 else _kept(out, dropout_p, tuple(out.shape))


def _from_one_state(out: Tensor, dropout_p: float) -> Tensor:
    """The generator is read and not moved."""
    before = torch.get_rng_state()
    found = _kept(out, dropout_p, tuple(out.shape))
    torch.set_rng_state(before)
    return found


DROPOUT = (
    dropping("by-batch", "all batch rows drop alike", _shared_along(0)),
    dropping("by-query", "all queries drop alike", _shared_along(1)),
    dropping("by-head", "all heads drop alike", _shared_along(2)),
    dropping("by-tile", "all tiles of 64 keys drop alike", _shared_along(3, 64)),
    dropping("not-at-one-query", "one query drops nothing", _not_at_one_query),
    dropping("stuck", "the generator is read and not moved", _from_one_state),
    recomputing("other-in-gradients", "gradients drop others than the forward did", _other_mask),
    recomputing("unscaled-gradients", "gradients lack the factor 1 / (1 - dropout_p)", _unscaled),
    recomputing("not-in-gradients", "gradients drop nothing", _undropped),
)
