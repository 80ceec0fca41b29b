"""Variations of a call of hstu_attention: other memory, other neighbours, more padding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from xattn_conformance.ops.attention_like import at_the_end, off_alignment, twice
from xattn_conformance.ops.base import Tensors, Variation
from xattn_conformance.ops.call import Call
from xattn_conformance.ops.memory import inside

# More than a kernel's tile, and odd.
_EXTRA_ROWS = 65


def strides(call: Call) -> Variation:
    """The same values in other memory: q and v stored head by head, the others cut out of larger tensors."""
    tensors = {name: _by_head(x) if name in ("q", "v") else inside(x) for name, x in call.tensors.items()}
    incoming = {name: _by_head(x) for name, x in call.incoming.items()}
    other = replace(call, tensors=tensors, incoming=incoming)
    return Variation("with the same values in another memory layout", (other,), lambda found: dict(found[0]))


def batch(call: Call) -> Variation:
    """Every sequence in a call of its own."""
    count = call.tensors["cu_seqlens"].shape[0] - 1
    parts = [_picked(call, [b]) for b in range(count)]

    def gather(found: Sequence[Tensors]) -> dict[str, Tensor]:
        return _laid_out(call, range(count), found)

    return Variation("with each sequence called alone", tuple(parts), gather)


def order(call: Call) -> Variation:
    """The last sequence first."""
    turned = list(range(call.tensors["cu_seqlens"].shape[0] - 1))[::-1]
    other = _picked(call, turned)
    starts = other.tensors["cu_seqlens"].tolist()

    def gather(found: Sequence[Tensors]) -> dict[str, Tensor]:
        parts = [{name: x[starts[n] : starts[n + 1]] for name, x in found[0].items()} for n in range(len(turned))]
        return _laid_out(call, turned, parts)

    return Variation("with the sequences in another order", (other,), gather)


def padding(call: Call) -> Variation:
    """More rows after the last sequence, all NaN."""

    def longer(x: Tensor) -> Tensor:
        return torch.cat([x, torch.full((_EXTRA_ROWS, *x.shape[1:]), torch.nan, dtype=x.dtype, device=x.device)])

    tensors = {name: longer(x) if name in ("q", "k", "v") else x for name, x in call.tensors.items()}
    other = replace(call, tensors=tensors, incoming={name: longer(x) for name, x in call.incoming.items()})

    def gather(found: Sequence[Tensors]) -> dict[str, Tensor]:
        return {name: x[:-_EXTRA_ROWS] for name, x in found[0].items()}

    return Variation("with rows after the last sequence appended", (other,), gather)


VARIATIONS: dict[str, Callable[[Call], Variation]] = {
    "strides": strides,
    "batch": batch,
    "order": order,
    "padding": padding,
    "edge": at_the_end,
    "misaligned": off_alignment,
    "twice": twice,
}


def _by_head(x: Tensor) -> Tensor:
    return x.transpose(0, 1).contiguous().transpose(0, 1)


def _picked(call: Call, which: Sequence[int]) -> Call:
    """The call of some sequences, in an order, without padding."""
    given = call.tensors
    starts = given["cu_seqlens"].tolist()

    def rows(x: Tensor) -> Tensor:
        return torch.cat([x[starts[b] : starts[b + 1]] for b in which] or [x[:0]])

    tensors = {name: rows(x) if name in ("q", "k", "v") else x for name, x in given.items()}
    counts = given["cu_seqlens"].diff()[list(which)]
    tensors["cu_seqlens"] = torch.nn.functional.pad(counts.cumsum(0), (1, 0)).to(given["cu_seqlens"])
    if "num_targets" in given:
        tensors["num_targets"] = given["num_targets"][list(which)]
    return replace(call, tensors=tensors, incoming={name: rows(x) for name, x in call.incoming.items()})


def _laid_out(call: Call, which: Sequence[int], parts: Sequence[Tensors]) -> dict[str, Tensor]:
    """Results of the call from those of its sequences; rows of none are 0."""
    starts, total = call.tensors["cu_seqlens"].tolist(), call.tensors["q"].shape[0]
    whole: dict[str, Tensor] = {}
    for b, part in zip(which, parts, strict=True):
        for name, x in part.items():
            whole.setdefault(name, torch.zeros((total, *x.shape[1:]), dtype=x.dtype, device=x.device))
            whole[name][starts[b] : starts[b + 1]] = x
    return whole
