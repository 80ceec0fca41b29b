"""Variations of a call of merge_attention: other memory, other batch mates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from xattn_conformance.ops.base import Tensors, Variation
from xattn_conformance.ops.call import Call
from xattn_conformance.ops.memory import inside


def strides(call: Call) -> Variation:
    """The same values in other memory: the first part stored with rows and heads the other way round, the others cut
    out of a larger tensor full of NaN, at an odd offset."""

    def stored(name: str, tensor: Tensor) -> Tensor:
        return _turned(name, tensor) if name.endswith("0") else inside(tensor)

    tensors = {name: stored(name, tensor) for name, tensor in call.tensors.items()}
    other = replace(call, tensors=tensors, incoming={name: inside(each) for name, each in call.incoming.items()})
    return Variation("with the same values in another memory layout", (other,), lambda found: dict(found[0]))


def _turned(name: str, tensor: Tensor) -> Tensor:
    rows, heads = (-1, -2) if name.startswith("lses") else (-3, -2)
    return tensor.transpose(rows, heads).contiguous().transpose(rows, heads)


def batch(call: Call) -> Variation:
    """Every batch row in a call of its own."""

    def row(tensors: Tensors, index: int) -> Tensors:
        return {name: tensor[index : index + 1] for name, tensor in tensors.items()}

    def gather(found: Sequence[Tensors]) -> dict[str, Tensor]:
        return {name: torch.cat([each[name] for each in found]) for name in found[0]}

    count = call.tensors["outs0"].shape[0]
    calls = [replace(call, tensors=row(call.tensors, i), incoming=row(call.incoming, i)) for i in range(count)]
    return Variation("with each batch row called alone", tuple(calls), gather)


VARIATIONS: dict[str, Callable[[Call], Variation]] = {"strides": strides, "batch": batch}
