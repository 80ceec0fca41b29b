"""Impostors that drop by another chance than they say."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from xattn_conformance.mutants.impostor import Impostor, Where
from xattn_conformance.ops.attention.mutants.impostors.common import Arguments, closed, with_out
from xattn_conformance.ops.call import Execute, execute


def dropping(name: str, wrong: str, drop: Callable[[Tensor, float], Tensor]) -> Impostor:
    """drop: out with what a mask of keys leaves of it. v is the identity: a column of out is a key's probability."""

    def made() -> Execute:
        def run(op: str, arguments: Arguments, backend: str) -> Any:
            whole = execute(op, {**arguments, "dropout_p": 0.0}, backend)
            return with_out(whole, lambda out: drop(out, arguments["dropout_p"]))

        return run

    chance = Where(also=lambda case: "dropout_p" in case.options and case.since not in ("1.0", "1.1"))
    return Impostor(f"dropout-{name}", wrong, closed(made), chance)


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
)
