"""The values of one call of mla_attention, and from a case to them: the same bits on every machine."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from xattn_conformance.array import Array
from xattn_conformance.case import Case
from xattn_conformance.inputs.draw import Draw
from xattn_conformance.inputs.quantised import STORAGES, Codes, decoded, packed, quantised
from xattn_conformance.ops.attention_like import Problem
from xattn_conformance.ops.mla_attention.cases import SCALE
from xattn_conformance.ops.paged import PADDING, Flags, Paged, Stored, padded, stored_pages
from xattn_conformance.ops.pool import Pool, laid_out
from xattn_conformance.ops.sequences import Held, Ints, cumulated, lengths, made

# How far a loose bound lies above the longest sequence.
_LOOSE = 100
# What a row of padding holds for a slot: nobody may look at it.
_NO_SLOT = 2**30


@dataclass(frozen=True)
class Latent(Paged):
    """A call in the contract's words: one over pages whose values are the first columns of its keys.

    k_cache: the latents, (num_blocks, block_size, 1, width). v_cache: what of them is the value, for whoever computes.
    topk_indices: (total_q, topk) slots, -1 for none. q_codes, q_scale: of FP8 queries, whose values q is.
    """

    topk_indices: Ints | None = None
    q_codes: Codes | None = None
    q_scale: Array | None = None

    @property
    def rank(self) -> int:
        """kv_lora_rank."""
        return int(self.v_cache.shape[3])

    @property
    def tokens(self) -> int:
        """Rows of q that are no padding."""
        return int(self.starts_q[-1])

    @property
    def rows(self) -> list[slice]:
        """The queries that see the same keys, masks aside: of a sequence, or each by itself."""
        if self.topk_indices is None:
            return super().rows
        return [slice(token, token + 1) for token in range(self.tokens)]

    @property
    def counts(self) -> list[tuple[int, int]]:
        if self.topk_indices is None:
            return super().counts
        return [(1, int((row >= 0).sum())) for row in self.topk_indices[: self.tokens]]

    @property
    def tensors(self) -> Held:
        given: dict[str, Any] = dict(super().tensors)
        given["kv_cache"] = given.pop("k_cache")
        del given["v_cache"]
        if "k_scale" in given:
            given["kv_scale"] = given.pop("k_scale")
            del given["v_scale"]
        if self.q_codes is not None:
            assert self.q_scale is not None
            given["q"] = packed(self.q_codes, "e4m3fn"), STORAGES["e4m3fn"][0]
            given["q_scale"] = self.q_scale, "float32"
        if self.topk_indices is not None:
            del given["block_table"], given["seqlens_k"]
            given["topk_indices"] = self.topk_indices, "int32"
        return given

    def sequences(self) -> list[Problem]:
        if self.topk_indices is None:
            return super().sequences()
        return [
            Problem(
                dtype=self.dtype,
                q=self.q[None, rows],
                k=self.listed(self.k_cache, rows.start)[None],
                v=self.listed(self.v_cache, rows.start)[None],
                scale=self.scale,
                softcap=self.softcap,
                sinks=self.sinks,
                return_lse=self.return_lse,
            )
            for rows in self.rows
        ]

    def listed(self, cache: Array, token: int) -> Array:
        """(slots, 1, columns): what a query names; NaN of what is outside the cache."""
        assert self.topk_indices is not None
        flat = cache.reshape(-1, *cache.shape[2:])
        slots = self.topk_indices[token][self.topk_indices[token] >= 0]
        return np.where((slots < len(flat))[:, None, None], flat[np.minimum(slots, len(flat) - 1)], np.nan)

    def seen_slots(self) -> Flags:
        if self.topk_indices is None:
            return super().seen_slots()
        seen = np.zeros(self.k_cache.shape[0] * self.k_cache.shape[1], bool)
        named = self.topk_indices[: self.tokens]
        seen[named[named >= 0]] = True
        return seen.reshape(self.k_cache.shape[:2])


def make(case: Case) -> Latent:
    """Raises ValueError for an unknown family or recipe."""
    size, options = case.shape, dict(case.options)
    batch, rank = size["batch"], size["headdim_v"]
    one = options["q"] == "one"
    queries = np.ones(batch, np.int64) if one else lengths(options["q"], batch, size["seqlen_q"])
    keys = lengths(options.get("k", options["q"]), batch, size["seqlen_k"])
    block, pages = options.pop("block"), options.pop("pages", "shuffled")
    padding, topk = options.pop("padding", False), options.pop("topk", None)
    bounds = {"none": None, "exact": 0, "loose": _LOOSE}[options.pop("bounds", "exact")]
    for name in ("q", "k"):
        options.pop(name, None)
    own = {name: options.pop(name) for name in ("unseen_finite", "out_dtype") if name in options}
    storage, granularity, fp8 = (options.pop(name, None) for name in ("storage", "scale_of", "fp8"))
    sequences, options = made(case, {"scale": SCALE, **options}, queries, keys)
    sequences = [replace(each, v=each.k[..., :rank]) for each in sequences]
    pool = laid_out(sequences, block, pages, (1, size["headdim"], rank))
    written = np.asarray(~np.isnan(pool.k_cache).all(axis=(2, 3)))
    if own.get("unseen_finite"):
        pool = Pool(np.nan_to_num(pool.k_cache), np.nan_to_num(pool.v_cache), pool.block_table)
    problem = Latent(
        dtype=case.dtype,
        q=np.concatenate([*(each.q[0] for each in sequences), np.zeros((0, size["nheads"], size["headdim"]))]),
        k_cache=pool.k_cache,
        v_cache=pool.v_cache,
        block_table=pool.block_table,
        seqlens_k=keys,
        cu_seqlens_q=None if one else cumulated(queries),
        max_seqlen_q=None if bounds is None else int(queries.max(initial=0)) + (bounds or 0),
        max_seqlen_k=None if bounds is None else int(keys.max(initial=0)) + bounds,
        **options,
        **own,
    )
    draw = Draw(case.seed, {"kv": 100, "order": 101, "holes": 102})
    if storage is not None:
        stored = stored_pages(problem.k_cache, storage, granularity, draw, "kv")
        problem = with_stored(problem, stored, rank)
    if fp8:
        problem = _with_fp8_queries(problem)
    if topk is not None:
        problem = replace(problem, topk_indices=lists_of(written, len(problem.q), topk, draw))
    return _padded(problem) if padding else problem


def with_stored(problem: Latent, stored: Stored, rank: int) -> Latent:
    """The same call over a quantised cache."""
    values = replace(stored, codes=stored.codes[..., :rank])
    return replace(problem, k_stored=stored, v_stored=values, k_cache=stored.values, v_cache=values.values)


def _with_fp8_queries(problem: Latent) -> Latent:
    """Under a scale that is a power of two, so that every dtype holds their values."""
    scale = np.asarray(2.0**-6)
    codes = quantised(problem.q, np.full(problem.q.shape[:-1], scale), "e4m3fn")
    return replace(problem, q_codes=codes, q_scale=scale, q=decoded(codes, "e4m3fn") * scale)


def lists_of(written: Flags, total_q: int, topk: int, draw: Draw) -> Ints:
    """(total_q, topk): some of the slots that are written, of whatever sequence, in no order; -1 among them, but for
    every fifth row, which is full; every fifth other row is -1 alone."""
    slots = np.flatnonzero(written)
    found = np.full((total_q, topk), -1, np.int64)
    if not len(slots):
        return found
    order = draw.integers("order", (total_q, len(slots))).argsort(axis=1, kind="stable")[:, :topk]
    found[:, : order.shape[1]] = slots[order]
    holes = draw.integers("holes", (total_q, topk)) % 3 == 0
    row = np.arange(total_q)[:, None]
    return np.where((row % 5 != 1) & (holes | (row % 5 == 3)), -1, found)


def _padded(problem: Latent) -> Latent:
    if problem.topk_indices is not None:
        lists = np.pad(problem.topk_indices, ((0, PADDING), (0, 0)), constant_values=_NO_SLOT)
        problem = replace(problem, topk_indices=lists)
    return padded(problem)
