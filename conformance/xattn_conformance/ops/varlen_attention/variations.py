"""Variations of a call of varlen_attention: other memory, other neighbours, more padding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor

from xattn_conformance.ops.attention_like import at_the_end, off_alignment, packed, some, strides_of_0, twice
from xattn_conformance.ops.base import Tensors, Variation
from xattn_conformance.ops.call import Call
from xattn_conformance.ops.chunks import chunked, cumulated
from xattn_conformance.ops.memory import far_apart, inside

# More than a kernel's tile, and odd.
_EXTRA_ROWS = 65


def strides(call: Call) -> Variation:
    """The same values in other memory: q and v stored head by head, the others cut out of larger tensors."""
    tensors = {
        name: _by_head(tensor) if name in ("q", "v") else inside(tensor) for name, tensor in call.tensors.items()
    }
    incoming = {name: _by_head(tensor) if name == "out" else inside(tensor) for name, tensor in call.incoming.items()}
    other = replace(call, tensors=tensors, incoming=incoming)
    return Variation("with the same values in another memory layout", (other,), lambda found: dict(found[0]))


def far(call: Call) -> Variation:
    """The tokens of q, k and v, as many of each, spread out over one allocation."""
    names = ("q", "k", "v")
    tokens = call.tensors["q"].shape[0]
    spread = far_apart([call.tensors[name] for name in names], 2**31 // (tokens - 1) + 1)
    other = call.with_tensors(**dict(zip(names, spread, strict=True)))
    return Variation("with a token past 2^31 elements", (other,), lambda found: dict(found[0]))


def batch(call: Call) -> Variation:
    """Every sequence in a call of its own."""
    count = call.tensors["cu_seqlens_q"].shape[0] - 1
    parts = [_picked(call, [b]) for b in range(count)]

    def gather(found: Sequence[Tensors]) -> dict[str, Tensor]:
        return _laid_out(call, range(count), found)

    return Variation("with each sequence called alone", tuple(parts), gather)


def order(call: Call) -> Variation:
    """The last sequence first."""
    count = call.tensors["cu_seqlens_q"].shape[0] - 1
    turned = list(range(count))[::-1]

    def gather(found: Sequence[Tensors]) -> dict[str, Tensor]:
        split = {}
        for name, tensor in _of_tokens(found[0]).items():
            lengths = _starts(call, name).diff().tolist()
            used, sizes = sum(lengths), [lengths[b] for b in turned]
            split[name] = tensor.narrow(_tokens(name), 0, used).split(sizes, _tokens(name))
        parts = [{name: pieces[n] for name, pieces in split.items()} for n in range(count)]
        return _laid_out(call, turned, parts)

    return Variation("with the sequences in another order", (_picked(call, turned),), gather)


def chunks(size: int) -> Callable[[Call], Variation]:
    """So many queries of every sequence at a time, over the keys up to the last of them: a prompt in chunks."""

    def vary(call: Call) -> Variation:
        given = call.tensors
        starts, lengths = given["cu_seqlens_q"].tolist(), given.get("cu_seqlens_k", given["cu_seqlens_q"])
        spans = list(zip(starts[1:], pairwise(lengths.tolist()), strict=True))

        def part(rows: list[slice]) -> Call:
            # Of each sequence as many keys fewer as there are queries after these.
            keys = [slice(a, max(b - (end - row.stop), a)) for row, (end, (a, b)) in zip(rows, spans, strict=True)]
            picked = {name: torch.cat([given[name][key] for key in keys]) for name in ("k", "v")}
            ends = {"cu_seqlens_q": cumulated(rows, lengths), "cu_seqlens_k": cumulated(keys, lengths)}
            return call.with_tensors(q=torch.cat([given["q"][row] for row in rows]), **picked, **ends)

        return chunked(call, starts, size, part)

    return vary


def padding(call: Call) -> Variation:
    """More rows after the last sequence, all NaN."""

    def longer(tensor: Tensor, dimension: int, fill: float) -> Tensor:
        shape = list(tensor.shape)
        shape[dimension] = _EXTRA_ROWS
        return torch.cat([tensor, torch.full(shape, fill, dtype=tensor.dtype, device=tensor.device)], dimension)

    tensors = {name: longer(x, 0, float("nan")) if name in ("q", "k", "v") else x for name, x in call.tensors.items()}
    incoming = {name: longer(tensor, _tokens(name), 1.0) for name, tensor in call.incoming.items()}

    def gather(found: Sequence[Tensors]) -> dict[str, Tensor]:
        cut = {
            name: tensor.narrow(_tokens(name), 0, tensor.shape[_tokens(name)] - _EXTRA_ROWS)
            for name, tensor in _of_tokens(found[0]).items()
        }
        return {**found[0], **cut}

    other = replace(call, tensors=tensors, incoming=incoming)
    return Variation("with rows after the last sequence appended", (other,), gather)


VARIATIONS: dict[str, Callable[[Call], Variation]] = {
    "strides": strides,
    "batch": batch,
    "order": order,
    "chunks_of_1": chunks(1),
    "chunks_of_17": chunks(17),
    "padding": padding,
    "far": far,
    "edge": at_the_end,
    "misaligned": off_alignment,
    "packed": packed,
    "expanded": strides_of_0,
    "some": some,
    "twice": twice,
}


def _tokens(name: str) -> int:
    """The dimension of a result that counts tokens."""
    return 1 if name == "lse" else 0


def _by_head(tensor: Tensor) -> Tensor:
    return tensor.transpose(0, 1).contiguous().transpose(0, 1)


def _of_tokens(found: Tensors) -> dict[str, Tensor]:
    """The results that have rows of tokens."""
    return {name: tensor for name, tensor in found.items() if name != "dsinks"}


def _starts(call: Call, name: str) -> Tensor:
    """cu_seqlens of a result."""
    given = call.tensors
    return given.get("cu_seqlens_k", given["cu_seqlens_q"]) if name in ("dk", "dv") else given["cu_seqlens_q"]


def _picked(call: Call, which: Sequence[int]) -> Call:
    """The call of some sequences, in an order, without padding."""
    given = call.tensors
    at_q = given["cu_seqlens_q"].tolist()
    at_k = given.get("cu_seqlens_k", given["cu_seqlens_q"]).tolist()
    tensors = dict(given)
    tensors["q"] = torch.cat([given["q"][at_q[b] : at_q[b + 1]] for b in which] or [given["q"][:0]])
    for name in {"dout", "out", "lse"} & given.keys():  # of the backward op
        parts = [given[name].narrow(_tokens(name), at_q[b], at_q[b + 1] - at_q[b]) for b in which]
        tensors[name] = torch.cat(parts or [given[name].narrow(_tokens(name), 0, 0)], _tokens(name))
    for name in ("k", "v"):
        tensors[name] = torch.cat([given[name][at_k[b] : at_k[b + 1]] for b in which] or [given[name][:0]])
    for name in ("cu_seqlens_q", "cu_seqlens_k"):
        if name in given:
            lengths = given[name].diff()[list(which)]
            tensors[name] = torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).to(given[name])
    # What has one number a sequence.
    if "align" in given:
        tensors["align"] = given["align"][list(which)]
    if "alibi_slopes" in given and given["alibi_slopes"].ndim == 2:
        tensors["alibi_slopes"] = given["alibi_slopes"][list(which)]
    incoming = {
        name: torch.cat([tensor.narrow(_tokens(name), at_q[b], at_q[b + 1] - at_q[b]) for b in which], _tokens(name))
        for name, tensor in call.incoming.items()
    }
    return replace(call, tensors=tensors, incoming=incoming)


def _laid_out(call: Call, which: Sequence[int], parts: Sequence[Tensors]) -> dict[str, Tensor]:
    """Results of the call from those of its sequences; what belongs to none is as the contract has it."""
    whole: dict[str, Tensor] = {}
    for b, part in zip(which, parts, strict=True):
        for name, tensor in _of_tokens(part).items():
            shape = list(tensor.shape)
            shape[_tokens(name)] = call.tensors[name[1:] if name in ("dq", "dk", "dv") else "q"].shape[0]
            fill = float("-inf") if name == "lse" else 0.0
            whole.setdefault(name, torch.full(shape, fill, dtype=tensor.dtype, device=tensor.device))
            start = int(_starts(call, name)[b])
            whole[name].narrow(_tokens(name), start, tensor.shape[_tokens(name)]).copy_(tensor)
    return whole
