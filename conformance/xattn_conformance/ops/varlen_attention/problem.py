"""The values of one call of varlen_attention, and from a case to them: the same bits on every machine."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xattn_conformance.array import Array
from xattn_conformance.case import Case
from xattn_conformance.inputs.draw import Draw
from xattn_conformance.inputs.formats import encode
from xattn_conformance.ops.attention_like import STREAMS, Problem, drawn, drawn_sinks, drawn_slopes, poisoned_with

Ints = NDArray[np.int64]

# Rows of padding after the last sequence, where a case has some.
PADDING = 5
# How far a loose bound lies above the longest sequence.
_LOOSE = 100


@dataclass(frozen=True)
class Varlen:
    """A call in the contract's words. Pure data, in float64, held exactly by `dtype`, sinks and slopes by float32.

    q: (total_q, nheads, headdim). k, v: (total_k, nheads_k, headdim or headdim_v). cu_seqlens_q, cu_seqlens_k:
    (batch + 1,); of the keys None where they are those of the queries. align: a name, an int, or (batch,) of them.
    """

    dtype: str
    q: Array
    k: Array
    v: Array
    cu_seqlens_q: Ints
    cu_seqlens_k: Ints | None = None
    max_seqlen_q: int | None = None
    max_seqlen_k: int | None = None
    causal: bool = False
    window: tuple[int | None, int | None] | None = None
    align: str | int | Ints = "bottom_right"
    scale: float | None = None
    softcap: float | None = None
    sinks: Array | None = None
    alibi_slopes: Array | None = None
    deterministic: bool = False
    return_lse: bool = False

    @property
    def rows(self) -> list[slice]:
        """The queries of each sequence."""
        return _slices(self.cu_seqlens_q)

    @property
    def keys(self) -> list[slice]:
        return _slices(self.cu_seqlens_q if self.cu_seqlens_k is None else self.cu_seqlens_k)

    @property
    def tensors(self) -> dict[str, tuple[NDArray[Any], str]]:
        """The arrays that are there by name, each with the format that holds it."""
        formats = {"q": self.dtype, "k": self.dtype, "v": self.dtype, "sinks": "float32", "alibi_slopes": "float32"}
        formats |= {"cu_seqlens_q": "int32", "cu_seqlens_k": "int32", "align": "int32"}
        given = {name: (getattr(self, name), kind) for name, kind in formats.items()}
        return {name: (values, kind) for name, (values, kind) in given.items() if isinstance(values, np.ndarray)}


def make(case: Case) -> Varlen:
    """Raises ValueError for an unknown family or recipe."""
    size, options = case.shape, dict(case.options)
    batch, nheads, nheads_k = size["batch"], size["nheads"], size["nheads_k"]
    queries = lengths(options.pop("q"), batch, size["seqlen_q"])
    recipe_k = options.pop("k", None)
    keys = queries if recipe_k is None else lengths(recipe_k, batch, size["seqlen_k"])
    padding = PADDING if options.pop("padding", False) else 0
    bounds = {"none": None, "exact": 0, "loose": _LOOSE}[options.pop("bounds", "exact")]
    shared = Draw(case.seed, STREAMS)
    if "sinks" in options:
        options["sinks"] = drawn_sinks(options["sinks"], nheads, size["seqlen_k"], shared)
    slopes = drawn_slopes(options.pop("alibi_slopes"), batch, nheads, shared) if "alibi_slopes" in options else None
    aligns = offsets(batch, queries, keys) if options.get("align") == "each" else options.get("align", "bottom_right")
    options["align"] = aligns
    if "window" in options:
        options["window"] = tuple(options["window"])
    made = [
        drawn(
            case.family,
            Draw((case.seed + 1 + b) % 2**64, STREAMS),
            case.dtype,
            (int(queries[b]), nheads, size["headdim"]),
            (int(keys[b]), nheads_k, size["headdim_v"]),
            **{**options, "align": aligned(aligns, b), "alibi_slopes": slopes_of(slopes, b)},
        )
        for b in range(batch)
    ]
    widths = {"q": (nheads, size["headdim"]), "k": (nheads_k, size["headdim"]), "v": (nheads_k, size["headdim_v"])}
    packed = {
        name: np.concatenate([*(getattr(each, name)[0] for each in made), np.full((padding, *width), np.nan)])
        for name, width in widths.items()
    }
    return Varlen(
        dtype=case.dtype,
        q=packed["q"],
        k=packed["k"],
        v=packed["v"],
        cu_seqlens_q=_cumulated(queries),
        cu_seqlens_k=None if recipe_k is None else _cumulated(keys),
        max_seqlen_q=None if bounds is None else int(queries.max(initial=0)) + bounds,
        max_seqlen_k=None if bounds is None else int(keys.max(initial=0)) + bounds,
        alibi_slopes=slopes,
        **options,
    )


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


def sequences(problem: Varlen) -> list[Problem]:
    """One attention problem a sequence, each a batch of 1."""
    return [
        Problem(
            dtype=problem.dtype,
            q=problem.q[None, rows],
            k=problem.k[None, keys],
            v=problem.v[None, keys],
            causal=problem.causal,
            window=problem.window,
            align=aligned(problem.align, b),
            scale=problem.scale,
            softcap=problem.softcap,
            sinks=problem.sinks,
            alibi_slopes=slopes_of(problem.alibi_slopes, b),
            return_lse=problem.return_lse,
        )
        for b, (rows, keys) in enumerate(zip(problem.rows, problem.keys, strict=True))
    ]


def poisoned(problem: Varlen, value: float) -> Varlen:
    """With k and v of every key that no query sees, and every row of padding, filled with a value."""
    q, k, v = problem.q.copy(), problem.k.copy(), problem.v.copy()
    q[problem.cu_seqlens_q[-1] :] = value
    last = problem.keys[-1].stop if problem.keys else 0
    k[last:], v[last:] = value, value
    for keys, sequence in zip(problem.keys, sequences(problem), strict=True):
        filled = poisoned_with(sequence, value)
        k[keys], v[keys] = filled.k[0], filled.v[0]
    return replace(problem, q=q, k=k, v=v)


def joined(problem: Varlen, name: str, parts: Sequence[Array], nobodys: float) -> Array:
    """(1, nheads, total_q, columns) from (1, nheads, queries, columns) of each sequence."""
    total_q, nheads = problem.q.shape[:2]
    whole = np.full((1, nheads, total_q, problem.v.shape[2] if name == "out" else 1), nobodys)
    for rows, part in zip(problem.rows, parts, strict=True):
        whole[:, :, rows] = part
    return whole


def bits(problem: Varlen) -> Mapping[str, NDArray[Any]]:
    """Every input tensor by name: floats as the codes of their format."""
    return {
        name: values.astype(np.int32) if kind == "int32" else encode(values, kind)
        for name, (values, kind) in problem.tensors.items()
    }


def digest(problem: Varlen) -> str:
    """sha256, in hex, over the name, dtype, shape and little-endian bits of every input tensor."""
    running = hashlib.sha256()
    for name, values in sorted(bits(problem).items()):
        running.update(f"{name} {problem.tensors[name][1]} {'x'.join(map(str, values.shape))}\n".encode())
        running.update(values.astype(values.dtype.newbyteorder("<")).tobytes())
    return running.hexdigest()


def _cumulated(counts: Ints) -> Ints:
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def _slices(cu_seqlens: Ints) -> list[slice]:
    return [slice(start, stop) for start, stop in pairwise(cu_seqlens.tolist())]
