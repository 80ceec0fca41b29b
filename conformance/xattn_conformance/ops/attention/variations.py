"""Variations of an attention call: other memory, other batch mates, more keys that do not exist, other poison."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from xattn_conformance.ops.base import Tensors, Variation
from xattn_conformance.ops.call import Call
from xattn_conformance.ops.memory import inside, transposed

# More than a kernel's tile, and odd.
_EXTRA_KEYS = 65

# Tensors whose first dimension is the batch in every case; of the others, in some.
_BATCHED = ("q", "k", "v", "seqlens_k", "out", "lse", "dq", "dk", "dv")


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


VARIATIONS: dict[str, Callable[[Call], Variation]] = {"strides": strides, "batch": batch, "padding": padding}


def _first(found: Sequence[Tensors]) -> dict[str, Tensor]:
    return dict(found[0])


def _longer(tensor: Tensor, dimension: int, fill: float) -> Tensor:
    shape = list(tensor.shape)
    shape[dimension] = _EXTRA_KEYS
    return torch.cat([tensor, torch.full(shape, fill, dtype=tensor.dtype, device=tensor.device)], dimension)
