"""The values of one call over keys in pages, and what of them its sequences see."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from xattn_conformance.array import Array
from xattn_conformance.inputs.draw import Draw
from xattn_conformance.inputs.quantised import STORAGES, Codes, decoded, packed, quantised, scale_shape, scales_of
from xattn_conformance.ops.attention_like import Problem
from xattn_conformance.ops.pool import seen_keys
from xattn_conformance.ops.sequences import Held, Ints, aligned, slices, slopes_of

Flags = NDArray[np.bool_]

P = TypeVar("P", bound="Paged")

# Rows of padding after the last sequence, where a case has some, and sequences of padding.
PADDING, PADDING_SEQUENCES = 5, 2


@dataclass(frozen=True)
class Stored:
    """What a quantised cache holds. codes: (num_blocks, block_size, nheads_k, headdim), one to a number. scale: by one
    of `GRANULARITIES`, float32."""

    storage: str
    codes: Codes
    scale: Array

    @property
    def values(self) -> Array:
        """The numbers that it stands for: products in float32."""
        scale = scales_of(self.scale, self.codes.shape[:3])[..., None]
        return (decoded(self.codes, self.storage).astype(np.float32) * scale.astype(np.float32)).astype(np.float64)


@dataclass(frozen=True)
class Paged:
    """A call in the contract's words. Pure data, in float64, held exactly by `dtype`, sinks and slopes by float32.

    q: (total_q, nheads, headdim). k_cache, v_cache: (num_blocks, block_size, nheads_k, headdim or headdim_v).
    block_table: (batch, pages). seqlens_k: (batch,). cu_seqlens_q: (batch + 1,); None: one query a sequence. align: a
    name, an int, or (batch,) of them. tree_mask: (total_q, max_seqlen_q). k_stored, v_stored: of quantised caches,
    whose values k_cache and v_cache are.
    """

    dtype: str
    q: Array
    k_cache: Array
    v_cache: Array
    block_table: Ints
    seqlens_k: Ints
    cu_seqlens_q: Ints | None = None
    max_seqlen_q: int | None = None
    max_seqlen_k: int | None = None
    causal: bool = False
    window: tuple[int | None, int | None] | None = None
    align: str | int | Ints = "bottom_right"
    scale: float | None = None
    softcap: float | None = None
    sinks: Array | None = None
    alibi_slopes: Array | None = None
    tree_mask: Flags | None = None
    out_dtype: str | None = None
    unseen_finite: bool = False
    deterministic: bool | str = False
    return_lse: bool = False
    k_stored: Stored | None = None
    v_stored: Stored | None = None

    @property
    def starts_q(self) -> Ints:
        """(batch + 1,)."""
        return np.arange(len(self.seqlens_k) + 1) if self.cu_seqlens_q is None else self.cu_seqlens_q

    @property
    def rows(self) -> list[slice]:
        """The queries of each sequence."""
        return slices(self.starts_q)

    @property
    def counts(self) -> list[tuple[int, int]]:
        """Queries and keys of each sequence."""
        return [(rows.stop - rows.start, int(n)) for rows, n in zip(self.rows, self.seqlens_k, strict=True)]

    def shape_of(self, name: str) -> tuple[int, int, int]:
        """(nheads, total_q, columns) of a result."""
        return self.q.shape[1], self.q.shape[0], self.v_cache.shape[3] if name == "out" else 1

    @property
    def tensors(self) -> Held:
        """The arrays that are there by name, each with the format that holds it."""
        formats = {"q": self.dtype, "k_cache": self.dtype, "v_cache": self.dtype}
        formats |= dict.fromkeys(("block_table", "seqlens_k", "cu_seqlens_q", "align"), "int32")
        formats |= {"sinks": "float32", "alibi_slopes": "float32", "tree_mask": "bool"}
        given = {name: (getattr(self, name), kind) for name, kind in formats.items()}
        for name, stored in (("k", self.k_stored), ("v", self.v_stored)):
            if stored is not None:
                given[f"{name}_cache"] = packed(stored.codes, stored.storage), STORAGES[stored.storage][0]
                given[f"{name}_scale"] = stored.scale, "float32"
        return {name: (values, kind) for name, (values, kind) in given.items() if isinstance(values, np.ndarray)}

    def sequences(self) -> list[Problem]:
        """One attention problem a sequence, each a batch of 1, its keys gathered through the table."""
        return [
            Problem(
                dtype=self.dtype,
                q=self.q[None, rows],
                k=gathered(self.k_cache, self.block_table[b], int(self.seqlens_k[b]))[None],
                v=gathered(self.v_cache, self.block_table[b], int(self.seqlens_k[b]))[None],
                causal=self.causal,
                window=self.window,
                align=aligned(self.align, b),
                scale=self.scale,
                softcap=self.softcap,
                sinks=self.sinks,
                alibi_slopes=slopes_of(self.alibi_slopes, b),
                mask=_mask(self, b),
                return_lse=self.return_lse,
            )
            for b, rows in enumerate(self.rows)
        ]

    def seen_slots(self) -> Flags:
        """(num_blocks, block_size): those that some query of some sequence sees."""
        blocks, block = self.k_cache.shape[:2]
        seen = np.zeros(blocks * block, bool)
        for row, each in zip(self.block_table, self.sequences(), strict=True):
            own = seen_keys(each)
            place = np.flatnonzero(own)
            seen[row[place // block] * block + place % block] = True
        return seen.reshape(blocks, block)


def quantised_pages(problem: Paged, storage: str, granularity: str, seed: int) -> Paged:
    """The same call over quantised caches, whose places that no sequence has hold any number.

    Scales are powers of two, so that every dtype holds the values: what a kernel rounds them to is not what is judged.
    """
    found: dict[str, Any] = {}
    for name, cache in (("k", problem.k_cache), ("v", problem.v_cache)):
        stored = stored_pages(cache, storage, granularity, Draw(seed, {"k": 100, "v": 101}), name)
        found |= {f"{name}_stored": stored, f"{name}_cache": stored.values}
    return replace(problem, **found)


def stored_pages(cache: Array, storage: str, granularity: str, draw: Draw, name: str) -> Stored:
    """The nearest numbers of a storage, under scales of the stream `name`."""
    pool = (cache.shape[0], cache.shape[1], cache.shape[2])
    shape = scale_shape(granularity, pool)
    steps = 2.0 ** -(draw.integers(name, shape) % 4).astype(np.float64)
    scale = np.asarray(steps * 2.0 ** -np.floor(np.log2(STORAGES[storage][1] / 4)))
    return Stored(storage, quantised(np.nan_to_num(cache), scales_of(scale, pool), storage), scale)


def padded(problem: P) -> P:
    """With rows of q that are NaN and sequences without queries and keys, after the others."""
    assert problem.cu_seqlens_q is not None

    def more(values: Any, count: int, fill: float) -> Any:
        return np.concatenate([values, np.full((count, *values.shape[1:]), fill, values.dtype)])

    def each(values: Any, fill: float, ndim: int = 1) -> Any:
        """Of what has one number a sequence."""
        there = isinstance(values, np.ndarray) and values.ndim == ndim
        return more(values, PADDING_SEQUENCES, fill) if there else values

    return replace(
        problem,
        q=more(problem.q, PADDING, np.nan),
        block_table=more(problem.block_table, PADDING_SEQUENCES, -1),
        seqlens_k=more(problem.seqlens_k, PADDING_SEQUENCES, 0),
        cu_seqlens_q=more(problem.cu_seqlens_q, PADDING_SEQUENCES, problem.cu_seqlens_q[-1]),
        align=each(problem.align, 7),
        alibi_slopes=each(problem.alibi_slopes, 1.0, ndim=2),
        tree_mask=None if problem.tree_mask is None else more(problem.tree_mask, PADDING, True),
    )


def with_past(tree: Flags, keys: int) -> Flags:
    """(queries, keys): the tree over the last keys, and all before them."""
    queries = len(tree)
    past = np.ones((queries, max(keys - queries, 0)), bool)
    whole: Flags = np.concatenate([past, tree[:, max(queries - keys, 0) :]], axis=1)
    return whole


def _mask(problem: Paged, b: int) -> Flags | None:
    if problem.tree_mask is None:
        return None
    own = problem.tree_mask[problem.rows[b]]
    return with_past(own[:, : len(own)], int(problem.seqlens_k[b]))[None, None]


def gathered(cache: Array, row: Ints, length: int) -> Array:
    """(length, nheads_k, columns): what the pages of a row of the table hold; NaN of those outside the pool."""
    blocks, block = cache.shape[:2]
    pages = row[: -(-length // block)]
    inside = (pages >= 0) & (pages < blocks)
    if not blocks:
        return np.full((length, *cache.shape[2:]), np.nan)
    found = np.where(inside[:, None, None, None], cache[np.where(inside, pages, 0)], np.nan)
    return found.reshape(-1, *cache.shape[2:])[:length]


def poisoned(problem: P, value: float) -> P:
    """With every slot that no query sees, and every row of padding, filled with a value."""
    q = problem.q.copy()
    q[problem.starts_q[-1] :] = value
    seen = problem.seen_slots()[..., None, None]
    k_cache, v_cache = (np.where(seen, cache, value) for cache in (problem.k_cache, problem.v_cache))
    return replace(problem, q=q, k_cache=k_cache, v_cache=v_cache)


def as_tensor(values: NDArray[Any], dtype: str, device: str) -> torch.Tensor:
    """Exact: the values are representable in the dtype, and float32 holds those of every narrower one."""
    if values.dtype == np.uint8:  # codes
        return torch.from_numpy(np.array(values)).to(device).view(getattr(torch, dtype))
    if values.dtype == np.float64:
        values = values.astype(np.float32)
    return torch.from_numpy(np.array(values)).to(device=device, dtype=getattr(torch, dtype))
