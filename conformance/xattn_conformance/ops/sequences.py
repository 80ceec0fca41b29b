"""What ops of several sequences share: their lengths, an attention problem for each, and results of all from those."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xattn_conformance.array import Array
from xattn_conformance.case import Case
from xattn_conformance.inputs.draw import Draw
from xattn_conformance.inputs.formats import encode
from xattn_conformance.inputs.quantised import STORAGES
from xattn_conformance.ops.attention_like import STREAMS, Problem, drawn, drawn_sinks, drawn_slopes

Ints = NDArray[np.int64]
# Arrays by name, each with the format that holds it.
Held = Mapping[str, tuple[NDArray[Any], str]]


def made(
    case: Case, options: dict[str, Any], queries: Ints, keys: Ints, masks: Sequence[NDArray[np.bool_]] | None = None
) -> tuple[list[Problem], dict[str, Any]]:
    """The sequences of a case, and its options with recipes replaced by values. masks: one a sequence."""
    size, options = case.shape, dict(options)
    batch, nheads, nheads_k = size["batch"], size["nheads"], size["nheads_k"]
    shared = Draw(case.seed, STREAMS)
    if "sinks" in options:
        options["sinks"] = drawn_sinks(options["sinks"], nheads, size["seqlen_k"], shared)
    slopes = drawn_slopes(options.pop("alibi_slopes"), batch, nheads, shared) if "alibi_slopes" in options else None
    aligns = offsets(batch, queries, keys) if options.get("align") == "each" else options.get("align", "bottom_right")
    options["align"] = aligns
    if "window" in options:
        options["window"] = tuple(options["window"])
    sequences = [
        drawn(
            case.family,
            Draw((case.seed + 1 + b) % 2**64, STREAMS),
            case.dtype,
            (int(queries[b]), nheads, size["headdim"]),
            (int(keys[b]), nheads_k, size["headdim_v"]),
            case.grads,
            **{**options, "align": aligned(aligns, b), "alibi_slopes": slopes_of(slopes, b)},
            **({} if masks is None else {"mask": masks[b]}),
        )
        for b in range(batch)
    ]
    return sequences, {**options, "alibi_slopes": slopes}


def lengths(recipe: str, batch: int, longest: int) -> Ints:
    """(batch,), the longest of them `longest`, but for "edges", which ends there."""
    row = np.arange(batch)
    made: dict[str, Ints] = {
        "equal": np.full(batch, longest),
        "ragged": longest * (row + 1) // max(batch, 1),
        "long": np.where(row == 0, longest, row % 3 + 1),
        "zeros": np.where(row % 2 == 1, longest, 0),
        "edges": np.array([1, 15, 16, 17, 63, 64, 65, 127, 128, 129])[row % 10],
    }
    return np.minimum(made[recipe], longest)


def offsets(batch: int, queries: Ints, keys: Ints) -> Ints:
    """(batch,): before the keys, within them, past them, by turns."""
    within = np.maximum(keys - queries, 0) // 2
    return np.choose(np.arange(batch) % 3, [within, within - 7, keys - 3])


def aligned(align: str | int | Ints, b: int) -> str | int:
    """That of sequence b."""
    return int(align[b]) if isinstance(align, np.ndarray) else align


def slopes_of(slopes: Array | None, b: int) -> Array | None:
    """(nheads,): those of sequence b."""
    return slopes if slopes is None or slopes.ndim == 1 else slopes[b]


def cumulated(counts: Ints) -> Ints:
    """(batch + 1,): their sums, from 0."""
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def slices(cu_seqlens: Ints) -> list[slice]:
    """The rows of each sequence."""
    return [slice(start, stop) for start, stop in pairwise(cu_seqlens.tolist())]


def joined(rows: Sequence[slice], shape: tuple[int, int, int], parts: Sequence[Array], nobodys: float) -> Array:
    """(1, nheads, total_q, columns), which is `shape`, from (1, nheads, queries, columns) of each sequence."""
    whole = np.full((1, *shape), nobodys)
    for each, part in zip(rows, parts, strict=True):
        whole[:, :, each] = part
    return whole


def bits(tensors: Held) -> Mapping[str, NDArray[Any]]:
    """Every input tensor by name: floats as the codes of their format."""
    whole: dict[str, Any] = {"int32": np.int32, "int64": np.int64, "bool": np.uint8}
    whole |= dict.fromkeys((dtype for dtype, _ in STORAGES.values()), np.uint8)
    return {
        name: values.astype(whole[kind]) if kind in whole else encode(values, kind)
        for name, (values, kind) in tensors.items()
    }


def digest(tensors: Held) -> str:
    """sha256, in hex, over the name, dtype, shape and little-endian bits of every input tensor."""
    running = hashlib.sha256()
    for name, values in sorted(bits(tensors).items()):
        running.update(f"{name} {tensors[name][1]} {'x'.join(map(str, values.shape))}\n".encode())
        running.update(values.astype(values.dtype.newbyteorder("<")).tobytes())
    return running.hexdigest()
