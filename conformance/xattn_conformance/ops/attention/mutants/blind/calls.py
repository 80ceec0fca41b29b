"""Blind impostors: right numbers, and what is wrong is beside them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from xattn_conformance.mutants.impostor import Impostor, Where
from xattn_conformance.mutants.impostor_parts import Arguments, Right, answering, closed, dense, reread, with_out
from xattn_conformance.ops.attention.mutants.impostors.state import keeping


class _AsContiguous(torch.autograd.Function):
    """The gradient that comes in is read as if it were contiguous."""

    @staticmethod
    def forward(ctx: Any, out: Tensor) -> Tensor:
        return out.view_as(out)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return reread(grads[0], dense(grads[0]), int(grads[0].storage_offset()))


def _scaled_in_place(arguments: Arguments, right: Right) -> Any:
    returned = right()
    arguments["q"].data.mul_(0.125)
    return returned


def _dout_as_contiguous(arguments: Arguments, right: Right) -> Any:
    return with_out(right(), _AsContiguous.apply)


def _dropped_unscaled(arguments: Arguments, right: Right) -> Any:
    return with_out(right(), lambda out: out * (1 - arguments["dropout_p"]))


CALLS: tuple[Impostor, ...] = (
    answering("q-scaled-in-place", "q is scaled where it lies, and left so", lambda: _scaled_in_place, Where()),
    Impostor(
        "lengths-kept",
        "the lengths are looked at once for each address",
        closed(keeping("seqlens_k")),
        Where(also=lambda case: "seqlens_k" in case.options),
    ),
    answering(
        "dout-as-contiguous",
        "backward: dout is read as if it were contiguous",
        lambda: _dout_as_contiguous,
        Where(also=lambda case: bool(case.grads)),
    ),
    answering(
        "dropout-unscaled",
        "what dropout keeps is not divided by 1 - p",
        lambda: _dropped_unscaled,
        Where(also=lambda case: "dropout_p" in case.options),
    ),
)
