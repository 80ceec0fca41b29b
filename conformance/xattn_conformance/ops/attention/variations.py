"""Variations of an attention call: other memory, other dtypes of what stands beside q, k and v, other batch mates, more
keys that do not exist, gradients of some inputs alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from xattn_conformance.ops.base import Tensors, Variation
from xattn_conformance.ops.call import Call
from xattn_conformance.ops.memory import at_edge, expanded, far_apart, inside, misaligned, transposed
from xattn_conformance.tolerance.arithmetic import Arithmetic
from xattn_conformance.tolerance.expected import Expected

# More than a kernel's tile, and odd.
_EXTRA_KEYS = 65

# Tensors whose first dimension is the batch in every case; of the others, in some.
_BATCHED = ("q", "k", "v", "seqlens_k", "out", "lse", "dout", "dq", "dk", "dv")


def strides(call: Call) -> Variation:
    """The same values in other memory: q, v and the incoming gradients stored as (batch, nheads, seqlen, headdim),
    everything else cut out of a larger tensor full of NaN, at an odd offset."""
    tensors = {name: (transposed if name in ("q", "v") else inside)(tensor) for name, tensor in call.tensors.items()}
    incoming = {name: (transposed if name == "out" else inside)(tensor) for name, tensor in call.incoming.items()}
    other = replace(call, tensors=tensors, incoming=incoming)
    return Variation("with the same values in another memory layout", (other,), _first)


def batch(call: Call) -> Variation:
    """Every batch row in a call of its own. Gradients of tensors that rows share follow from no row alone."""
    rows = call.tensors["q"].shape[0]
    if rows < 2:
        raise ValueError("the variation batch needs a batch of 2 or more")

    def own(name: str, tensor: Tensor) -> bool:
        """Whether a tensor has a part for each batch row."""
        if name in _BATCHED:
            return True
        whole = tensor.ndim == (2 if name == "alibi_slopes" else 4)
        return name != "sinks" and whole and tensor.shape[0] == rows

    def row(tensors: Tensors, index: int) -> dict[str, Tensor]:
        return {name: tensor[index : index + 1] if own(name, tensor) else tensor for name, tensor in tensors.items()}

    def gather(found: Sequence[Tensors]) -> dict[str, Tensor]:
        shared = {f"d{name}" for name, tensor in call.tensors.items() if not own(name, tensor)}
        return {name: torch.cat([each[name] for each in found]) for name in found[0] if name not in shared}

    calls = [replace(call, tensors=row(call.tensors, i), incoming=row(call.incoming, i)) for i in range(rows)]
    return Variation("with each batch row called alone", tuple(calls), gather)


def chunks(size: int) -> Callable[[Call], Variation]:
    """So many queries at a time, over the keys up to the last of them: a prompt in chunks."""

    def vary(call: Call) -> Variation:
        plain = call.options["causal"] and call.options["align"] == "bottom_right"
        if not plain or set(call.tensors) != {"q", "k", "v"}:
            raise ValueError("chunks need a causal call of q, k and v alone, aligned bottom right")
        queries, keys = call.tensors["q"].shape[1], call.tensors["k"].shape[1]
        calls = []
        for first in range(0, queries, size):
            stop = min(first + size, queries)
            seen = {name: call.tensors[name][:, : keys - (queries - stop)] for name in ("k", "v")}
            calls.append(call.with_tensors(q=call.tensors["q"][:, first:stop], **seen))

        def gather(found: Sequence[Tensors]) -> dict[str, Tensor]:
            return {name: torch.cat([each[name] for each in found], 2 if name == "lse" else 1) for name in found[0]}

        return Variation(f"with {size} queries at a time", tuple(calls), gather)

    return vary


def padding(call: Call) -> Variation:
    """More keys and values, all NaN, that seqlens_k says do not exist."""
    q, k = call.tensors["q"], call.tensors["k"]
    rows, seqlen_k = k.shape[:2]
    tensors = dict(call.tensors)
    tensors.setdefault("seqlens_k", torch.full((rows,), seqlen_k, dtype=torch.int32, device=q.device))
    for name in ("k", "v"):
        tensors[name] = _longer(tensors[name], 1, float("nan"))
    # A size of 1 broadcasts to any number of keys.
    wide = [name for name in ("bias", "mask") if name in tensors and tensors[name].shape[-1:] == (seqlen_k,)]
    for name in wide if seqlen_k != 1 else ():
        tensors[name] = _longer(tensors[name], tensors[name].ndim - 1, 0)

    def gather(found: Sequence[Tensors]) -> dict[str, Tensor]:
        kept = dict(found[0])
        for name in {"dk", "dv"} & kept.keys():
            kept[name] = kept[name][:, :seqlen_k]
        if "dbias" in kept and "bias" in wide:
            kept["dbias"] = kept["dbias"][..., :seqlen_k]
        return kept

    return Variation("with keys past seqlens_k appended", (replace(call, tensors=tensors),), gather)


def other_inputs(call: Call) -> Variation:
    """A call on inputs that differ only where no query may look."""
    return Variation("with other values where no query may look", (call,), _first)


def _placed(said: str, place: Callable[[str, Tensor], Tensor]) -> Callable[[Call], Variation]:
    """The same values, each tensor put somewhere else by its name."""

    def vary(call: Call) -> Variation:
        tensors = {name: place(name, tensor) for name, tensor in call.tensors.items()}
        incoming = {name: place(f"d{name}", tensor) for name, tensor in call.incoming.items()}
        return Variation(said, (replace(call, tensors=tensors, incoming=incoming),), _first)

    return vary


def _turned(name: str, tensor: Tensor) -> Tensor:
    """k and the rest of what "strides" leaves as it is, head by head; a mask and a bias with keys before queries."""
    if name in ("k", "dlse"):
        return transposed(tensor)
    if name in ("mask", "bias") and tensor.ndim > 1:
        return tensor.transpose(-1, -2).contiguous().transpose(-1, -2)
    if name in ("seqlens_k", "sinks", "alibi_slopes"):
        return torch.stack([tensor, torch.zeros_like(tensor)], dim=-1)[..., 0]
    return tensor


def packed(call: Call) -> Variation:
    """q, k and v as slices of one tensor where their sizes let them; else k and v."""
    names = (
        ["q", "k", "v"] if _fit(call, "q", "k") and _fit(call, "k", "v") else ["k", "v"] if _fit(call, "k", "v") else []
    )
    if not names:
        raise ValueError("the variation packed needs k and v of one headdim")
    parts = torch.cat([call.tensors[name] for name in names], dim=-2)
    slices = parts.split([call.tensors[name].shape[-2] for name in names], dim=-2)
    other = call.with_tensors(**dict(zip(names, slices, strict=True)))
    return Variation(f"with {', '.join(names)} as slices of one tensor", (other,), _first)


def _fit(call: Call, one: str, other: str) -> bool:
    a, b = call.tensors[one].shape, call.tensors[other].shape
    return (a[:-2], a[-1]) == (b[:-2], b[-1])


def types(call: Call) -> Variation:
    """seqlens_k in int64 with a stride, sinks and bias in another dtype that holds their values."""
    tensors = dict(call.tensors)
    if "seqlens_k" in tensors:
        lengths = tensors["seqlens_k"].to(torch.int64)
        tensors["seqlens_k"] = torch.stack([lengths, torch.full_like(lengths, 2**40 + 1)], dim=-1)[:, 0]
    for name in ("sinks", "bias"):
        if name in tensors:
            tensors[name] = _otherwise(tensors[name])
    return Variation("with the other arguments in other dtypes", (replace(call, tensors=tensors),), _first)


def _otherwise(tensor: Tensor) -> Tensor:
    dtypes = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    held = [tensor.to(dtype) for dtype in dtypes if dtype != tensor.dtype]
    return next(other for other in held if torch.equal(other.to(tensor.dtype), tensor))


def double(call: Call) -> Variation:
    """q, k, v, bias and what comes in for out in float64."""
    tensors = {n: t.double() if n in ("q", "k", "v", "bias") else t for n, t in call.tensors.items()}
    incoming = {n: t.double() if n == "out" else t for n, t in call.incoming.items()}

    def gather(found: Sequence[Tensors]) -> dict[str, Tensor]:
        wrong = [n for n, t in found[0].items() if n not in ("lse", "dsinks") and t.dtype != torch.float64]
        if wrong:
            raise TypeError(f"in float64, {', '.join(wrong)} came back in another dtype")
        return dict(found[0])

    return Variation("in float64", (replace(call, tensors=tensors, incoming=incoming),), gather)


def some(call: Call) -> Variation:
    """Each gradient asked for alone: the other inputs need none."""
    # v has no part in lse: where only lse has a gradient, there is no graph without another input.
    beside = () if "out" in call.incoming else ("k",)
    calls = tuple(replace(call, wanted=(*beside, name) if name == "v" else (name,)) for name in call.wanted)

    def gather(found: Sequence[Tensors]) -> dict[str, Tensor]:
        return {name: tensor for each in found[::-1] for name, tensor in each.items()}

    return Variation("with the gradient of one input at a time", calls, gather)


def twice(call: Call) -> Variation:
    return Variation("in a second backward pass through the same graph", (replace(call, twice=True),), _first)


def along(call: Call, directions: Tensors, golden: Callable[[Arithmetic], Mapping[str, Expected]]) -> Variation:
    """In place of gradients those of their sum along directions."""
    return Variation("differentiated once more", (replace(call, along=directions),), _first, golden=golden)


def far(call: Call) -> Variation:
    tensors = far_apart([call.tensors[name] for name in ("q", "k", "v")])
    other = call.with_tensors(**dict(zip(("q", "k", "v"), tensors, strict=True)))
    return Variation("with batch rows 2^31 elements apart", (other,), _first)


strides_of_0 = _placed("with strides of 0 where values are equal", lambda n, t: expanded(t))
off_alignment = _placed("with every tensor one element past an aligned address", lambda n, t: misaligned(t))
at_the_end = _placed("with every tensor at the end of its memory", lambda n, t: at_edge(t))

VARIATIONS: dict[str, Callable[[Call], Variation]] = {
    "strides": strides,
    "batch": batch,
    "chunks_of_1": chunks(1),
    "chunks_of_17": chunks(17),
    "padding": padding,
    "turned": _placed("with k, bias and mask stored the other way round", _turned),
    "misaligned": off_alignment,
    "expanded": strides_of_0,
    "edge": at_the_end,
    "packed": packed,
    "types": types,
    "double": double,
    "some": some,
    "twice": twice,
    "far": far,
}


def _first(found: Sequence[Tensors]) -> dict[str, Tensor]:
    return dict(found[0])


def _longer(tensor: Tensor, dimension: int, fill: float) -> Tensor:
    shape = list(tensor.shape)
    shape[dimension] = _EXTRA_KEYS
    return torch.cat([tensor, torch.full(shape, fill, dtype=tensor.dtype, device=tensor.device)], dimension)
