"""Variations of a call of apply_rotary: other memory, other batch mates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from xattn_conformance.ops.base import Tensors, Variation
from xattn_conformance.ops.call import Call
from xattn_conformance.ops.memory import inside, transposed


def strides(call: Call) -> Variation:
    """The same values in other memory: q and its incoming gradient stored as (batch, nheads, seqlen, headdim), the
    others cut out of a larger tensor full of NaN, at an odd offset."""
    tensors = {name: (transposed if name == "q" else inside)(tensor) for name, tensor in call.tensors.items()}
    incoming = {name: (transposed if name == "out" else inside)(tensor) for name, tensor in call.incoming.items()}
    other = replace(call, tensors=tensors, incoming=incoming)
    return Variation("with the same values in another memory layout", (other,), lambda found: dict(found[0]))


def batch(call: Call) -> Variation:
    """Every batch row in a call of its own."""
    rows = call.tensors["q"].shape[0]

    def row(tensors: Tensors, index: int) -> Tensors:
        # cos and sin that rows share have no dimension for them.
        return {name: tensor if tensor.dim() == 2 else tensor[index : index + 1] for name, tensor in tensors.items()}

    def gather(found: Sequence[Tensors]) -> dict[str, torch.Tensor]:
        return {name: torch.cat([each[name] for each in found]) for name in found[0]}

    calls = [replace(call, tensors=row(call.tensors, i), incoming=row(call.incoming, i)) for i in range(rows)]
    return Variation("with each batch row called alone", tuple(calls), gather)


VARIATIONS: dict[str, Callable[[Call], Variation]] = {"strides": strides, "batch": batch}
