"""What impostors are made of."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

import xattn
from xattn_conformance.case import Case
from xattn_conformance.mutants.impostor import Impostor, Where
from xattn_conformance.ops.call import Execute, execute

Arguments = Mapping[str, Any]
# What gives the right results.
Right = Callable[[], Any]
# Of a call's arguments and of what gives the right results.
Answer = Callable[[Arguments, Right], Any]
# From the arguments of a call to those that are read.
Reading = Callable[[dict[str, Any]], None]


def varied(*names: str, also: Callable[[Case], bool] = lambda case: True) -> Where:
    return Where(names, also)


def with_out(returned: Any, edit: Callable[[Tensor], Tensor]) -> Any:
    """The results with another out."""
    if isinstance(returned, Tensor):
        return edit(returned)
    return xattn.AttentionOutput(edit(returned.out), returned.lse)


def closed(made: Callable[[], Execute]) -> Callable[[], Any]:
    @contextmanager
    def opened() -> Iterator[Execute]:
        yield made()

    return opened


def answering(
    name: str,
    wrong: str,
    answer: Callable[[], Answer],
    applies: Where,
) -> Impostor:
    """answer: a fresh function of a call's arguments and of what gives the right results."""

    def made() -> Execute:
        fresh = answer()

        def run(op: str, arguments: Arguments, backend: str) -> Any:
            return fresh(arguments, lambda: execute(op, arguments, backend))

        return run

    return Impostor(name, wrong, closed(made), applies)


def misreading(name: str, wrong: str, read: Reading, applies: Where) -> Impostor:
    def made() -> Execute:
        def run(op: str, arguments: Arguments, backend: str) -> Any:
            changed = dict(arguments)
            read(changed)
            return execute(op, changed, backend)

        return run

    return Impostor(name, wrong, closed(made), applies)


def reread(tensor: Tensor, strides: tuple[int, ...], offset: int) -> Tensor:
    """What lies where a kernel looks that goes by other strides; past the end it begins anew."""
    there = torch.as_strided(tensor, (tensor.untyped_storage().nbytes() // tensor.element_size(),), (1,), 0)
    at = torch.full(tensor.shape, offset)
    for dimension, (size, stride) in enumerate(zip(tensor.shape, strides, strict=True)):
        shape = [1] * tensor.ndim
        shape[dimension] = size
        at = at + (torch.arange(size) * stride).view(shape)
    return there[at % there.shape[0]]


def dense(tensor: Tensor) -> tuple[int, ...]:
    return torch.empty(tensor.shape, device="meta").stride()


# Every call shows it; small ones will do.
ANY_CALL = Where(also=lambda case: "refilled" in case.variations)
