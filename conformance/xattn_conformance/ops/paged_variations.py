"""Variations of a call over keys in pages, or over lists of slots: other memory, other pages, other neighbours, more
padding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from xattn_conformance.ops.attention_like import at_the_end, off_alignment
from xattn_conformance.ops.base import Tensors, Variation
from xattn_conformance.ops.call import Call
from xattn_conformance.ops.chunks import chunked, cumulated
from xattn_conformance.ops.memory import far_apart, inside

# More than a kernel's tile, and odd.
_EXTRA_ROWS = 65
# What may hold keys and values.
_CACHES = ("k_cache", "v_cache", "kv_cache")
# What has a row for each token, and what an added row of padding has there.
_OF_TOKENS = {"q": float("nan"), "tree_mask": True, "topk_indices": 2**30}
# What has one number a sequence, and what an added sequence has there.
_OF_SEQUENCES = {"block_table": -1, "seqlens_k": 0, "align": 3}


def caches(call: Call) -> list[str]:
    return [name for name in _CACHES if name in call.tensors]


def lists_turned(call: Call) -> Variation:
    """The last slot of each list first."""
    other = call.with_tensors(topk_indices=call.tensors["topk_indices"].flip(1))
    return Variation("with the slots of each list in another order", (other,), lambda found: dict(found[0]))


def strides(call: Call) -> Variation:
    """The same values in other memory: all caches in one buffer, keys beside values page by page, q stored head by
    head, the table or lists cut out of a larger one."""
    tensors = dict(call.tensors)
    names = caches(call)
    first = tensors[names[0]]
    blocks, block, nheads_k, _ = first.shape
    widest = max(tensors[name].shape[3] for name in names) + 8
    buffer = torch.full(
        (blocks, len(names), nheads_k, block, widest), float("nan"), dtype=first.dtype, device=first.device
    )
    for n, name in enumerate(names):
        view = buffer[:, n].transpose(1, 2)[..., : tensors[name].shape[3]]
        tensors[name] = view.copy_(tensors[name])
    tensors["q"] = tensors["q"].transpose(0, 1).contiguous().transpose(0, 1)
    for name in {"block_table", "topk_indices"} & set(tensors):
        tensors[name] = inside(tensors[name])
    other = replace(call, tensors=tensors)
    return Variation("with the same values in another memory layout", (other,), lambda found: dict(found[0]))


def pages(call: Call) -> Variation:
    """The pool turned round: the last page first."""
    tensors = dict(call.tensors)
    blocks, block = tensors[caches(call)[0]].shape[:2]
    for name in caches(call):
        tensors[name] = tensors[name].flip(0)
    if "topk_indices" in tensors:
        slots = tensors["topk_indices"]
        there = (blocks - 1 - slots // block) * block + slots % block
        tensors["topk_indices"] = torch.where((slots >= 0) & (slots < blocks * block), there, slots)
    else:
        table = tensors["block_table"]
        tensors["block_table"] = torch.where((table >= 0) & (table < blocks), blocks - 1 - table, table)
    return Variation("with the pages elsewhere", (replace(call, tensors=tensors),), lambda found: dict(found[0]))


def far(call: Call) -> Variation:
    """The pool turned round and spread out: its last page was the first, which is taken, and begins past 2^31
    elements."""
    turned = pages(call).calls[0]
    names = caches(call)
    blocks = turned.tensors[names[0]].shape[0]
    apart = far_apart([turned.tensors[name] for name in names], 2**31 // (blocks - 1) + 1)
    other = turned.with_tensors(**dict(zip(names, apart, strict=True)))
    return Variation("with a page past 2^31 elements", (other,), lambda found: dict(found[0]))


def edge(call: Call) -> Variation:
    """Every tensor at the end of its memory, and no page after the last that the table or a list names."""
    tensors = dict(call.tensors)
    blocks, block = tensors[caches(call)[0]].shape[:2]
    named = tensors["topk_indices"] // block if "topk_indices" in tensors else tensors["block_table"]
    last = int(named[(named >= 0) & (named < blocks)].max())
    for name in caches(call):
        tensors[name] = tensors[name][: last + 1]
    return at_the_end(replace(call, tensors=tensors))


def batch(call: Call) -> Variation:
    """Every sequence in a call of its own."""
    count = len(_starts(call)) - 1
    parts = [_picked(call, [b]) for b in range(count)]

    def gather(found: Sequence[Tensors]) -> dict[str, Tensor]:
        return _laid_out(call, range(count), found)

    return Variation("with each sequence called alone", tuple(parts), gather)


def order(call: Call) -> Variation:
    """The last sequence first."""
    starts = _starts(call)
    turned = list(range(len(starts) - 1))[::-1]

    def gather(found: Sequence[Tensors]) -> dict[str, Tensor]:
        sizes = [starts[b + 1] - starts[b] for b in turned]
        split = {
            name: tensor.narrow(_tokens(name), 0, starts[-1]).split(sizes, _tokens(name))
            for name, tensor in found[0].items()
        }
        parts = [{name: pieces[n] for name, pieces in split.items()} for n in range(len(turned))]
        return _laid_out(call, turned, parts)

    return Variation("with the sequences in another order", (_picked(call, turned),), gather)


def chunks(size: int) -> Callable[[Call], Variation]:
    """So many queries of every sequence at a time, as if the keys after them were not written yet: a prompt in
    chunks."""

    def vary(call: Call) -> Variation:
        starts, lengths = _starts(call), call.tensors["seqlens_k"]

        def part(rows: list[slice]) -> Call:
            later = torch.tensor([end - row.stop for row, end in zip(rows, starts[1:], strict=True)]).to(lengths)
            return call.with_tensors(
                q=torch.cat([call.tensors["q"][row] for row in rows]),
                seqlens_k=(lengths - later).clamp_min(0),
                cu_seqlens_q=cumulated(rows, lengths),
            )

        return chunked(call, starts, size, part)

    return vary


def padding(call: Call) -> Variation:
    """More rows after the last sequence, all NaN, and a sequence without queries and keys."""
    tensors = dict(call.tensors)
    total_q = tensors["q"].shape[0]
    for name in _OF_TOKENS.keys() & tensors.keys():
        below = [0, 0] * (tensors[name].ndim - 1)
        tensors[name] = pad(tensors[name], (*below, 0, _EXTRA_ROWS), value=_OF_TOKENS[name])
    for name, fill in _OF_SEQUENCES.items():
        if name in tensors:
            below = [0, 0] * (tensors[name].ndim - 1)
            tensors[name] = pad(tensors[name], (*below, 0, 1), value=fill)
    starts = torch.tensor(_starts(call), dtype=torch.int32, device=tensors["q"].device)
    tensors["cu_seqlens_q"] = torch.cat([starts, starts[-1:]])
    if "alibi_slopes" in tensors and tensors["alibi_slopes"].ndim == 2:
        tensors["alibi_slopes"] = pad(tensors["alibi_slopes"], (0, 0, 0, 1), value=1.0)

    def gather(found: Sequence[Tensors]) -> dict[str, Tensor]:
        return {name: tensor.narrow(_tokens(name), 0, total_q) for name, tensor in found[0].items()}

    return Variation("with rows and a sequence of padding appended", (replace(call, tensors=tensors),), gather)


VARIATIONS: dict[str, Callable[[Call], Variation]] = {
    "strides": strides,
    "pages": pages,
    "far": far,
    "edge": edge,
    "misaligned": off_alignment,
    "batch": batch,
    "order": order,
    "chunks_of_1": chunks(1),
    "chunks_of_17": chunks(17),
    "padding": padding,
    "lists_turned": lists_turned,
}


def _tokens(name: str) -> int:
    """The dimension of a result that counts tokens."""
    return 1 if name == "lse" else 0


def _starts(call: Call) -> list[int]:
    given = call.tensors
    if "cu_seqlens_q" in given:
        found: list[int] = given["cu_seqlens_q"].tolist()
        return found
    return list(range(given["q"].shape[0] + 1))


def _picked(call: Call, which: Sequence[int]) -> Call:
    """The call of some sequences, in an order, without rows of padding."""
    given, starts = call.tensors, _starts(call)
    tensors = dict(given)
    for name in _OF_TOKENS:
        if name in given:
            tensors[name] = torch.cat([given[name][starts[b] : starts[b + 1]] for b in which] or [given[name][:0]])
    if "cu_seqlens_q" in given:
        counts = given["cu_seqlens_q"].diff()[list(which)]
        tensors["cu_seqlens_q"] = pad(counts.cumsum(0), (1, 0)).to(given["cu_seqlens_q"])
    for name in _OF_SEQUENCES:
        if name in given:
            tensors[name] = given[name][list(which)]
    if "alibi_slopes" in given and given["alibi_slopes"].ndim == 2:
        tensors["alibi_slopes"] = given["alibi_slopes"][list(which)]
    return replace(call, tensors=tensors)


def _laid_out(call: Call, which: Sequence[int], parts: Sequence[Tensors]) -> dict[str, Tensor]:
    """Results of the call from those of its sequences; what belongs to none is as the contract has it."""
    starts, total_q = _starts(call), call.tensors["q"].shape[0]
    whole: dict[str, Tensor] = {}
    for b, part in zip(which, parts, strict=True):
        for name, tensor in part.items():
            shape = list(tensor.shape)
            shape[_tokens(name)] = total_q
            fill = float("-inf") if name == "lse" else 0.0
            whole.setdefault(name, torch.full(shape, fill, dtype=tensor.dtype, device=tensor.device))
            whole[name].narrow(_tokens(name), starts[b], tensor.shape[_tokens(name)]).copy_(tensor)
    return whole
