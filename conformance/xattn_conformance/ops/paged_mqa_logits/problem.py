"""The values of one call of paged_mqa_logits, and from a case to them: the same bits on every machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xattn_conformance.array import Array
from xattn_conformance.case import Case
from xattn_conformance.inputs.draw import Draw
from xattn_conformance.ops.logits import STREAMS, Group, Logits, drawn, drawn_scales, drawn_weights, held
from xattn_conformance.ops.sequences import Ints, cumulated, lengths, slices

# Rows of q after the last sequence; pages that no sequence has; and how far above the longest a loose bound lies.
PADDING, SPARE, _LOOSE = 3, 3, 30
# What stands in a table past a sequence's last page.
NO_PAGE = 2**30


@dataclass(frozen=True)
class PagedMqaLogits:
    """A call in the contract's words. Pure data, in float64.

    q: (total_q, nheads, headdim), cache: (num_blocks, block_size, 1, headdim), held exactly by `dtype`, or by FP8.
    weights: (total_q, nheads). scale: (num_blocks, block_size, 1). table: (batch, max_blocks). keys: (batch,), how many
    each sequence has. starts_q: (batch + 1,). one_query: the call has no cu_seqlens_q.
    """

    dtype: str
    fp8: str | None
    q: Array
    cache: Array
    weights: Array
    scale: Array
    table: Ints
    keys: Ints
    starts_q: Ints
    one_query: bool
    max_seqlen_k: int

    @property
    def tensors(self) -> Mapping[str, tuple[NDArray[Any], str]]:
        """The tensors of the call, each with the format that holds it."""
        found = {"q": held(self.q, self.dtype, self.fp8), "k_cache": held(self.cache, self.dtype, self.fp8)}
        found |= {"weights": (self.weights, "float32"), "block_table": (self.table, "int32")}
        found["seqlens_k"] = self.keys, "int32"
        if not self.one_query:
            found["cu_seqlens_q"] = self.starts_q, "int32"
        return found if self.fp8 is None else {**found, "k_scale": (self.scale, "float32")}

    def group(self, b: int) -> Group:
        """Of one sequence."""
        rows, length, block = slices(self.starts_q)[b], int(self.keys[b]), self.cache.shape[1]
        pages = self.table[b, : -(-length // block)]
        keys = np.zeros((self.max_seqlen_k, self.q.shape[2]))
        scale = np.zeros(self.max_seqlen_k)
        keys[:length] = self.cache[pages].reshape(-1, self.q.shape[2])[:length]
        scale[:length] = self.scale[pages].reshape(-1)[:length]
        count = rows.stop - rows.start
        last = length - count + np.arange(count)[:, None] + 1
        seen: NDArray[np.bool_] = np.arange(self.max_seqlen_k) < last
        return Group(self.q[rows], self.weights[rows], keys, scale, seen, rows)

    @cached_property
    def logits(self) -> Logits:
        """One group a sequence."""
        groups = tuple(self.group(b) for b in range(len(self.keys)))
        return Logits(self.dtype, self.fp8, (len(self.q), self.max_seqlen_k), groups)


def make(case: Case) -> PagedMqaLogits:
    """Raises KeyError for an unknown recipe."""
    size, options, draw = case.shape, case.options, Draw(case.seed, STREAMS)
    batch, block, fp8 = size["batch"], int(options["block"]), options.get("fp8")
    one = options["q"] == "one"
    queries = np.ones(batch, np.int64) if one else lengths(options["q"], batch, size["seqlen_q"])
    keys = lengths(options["k"], batch, size["seqlen_k"])
    padding = bool(options.get("padding"))
    if padding:
        queries, keys = np.append(queries, 0), np.append(keys, 0)
    pages = -(-keys // block)
    count = int(pages.sum()) + SPARE
    order = np.argsort(draw.integers("pages", (count,)), kind="stable")
    table = np.full((len(keys), int(pages.max(initial=0)) + 1), NO_PAGE)
    starts = cumulated(pages)
    for b, number in enumerate(pages):
        table[b, :number] = order[starts[b] : starts[b] + number]
    total_q = int(queries.sum()) + (PADDING if padding else 0)
    shape = (total_q, size["nheads"], size["headdim"])
    q = drawn("q", shape, case.family, case.dtype, fp8, draw)
    q[int(queries.sum()) :] = np.nan
    cache = drawn("k", (count, block, 1, size["headdim"]), case.family, case.dtype, fp8, draw)
    scale = drawn_scales((count, block, 1), fp8, draw)
    unseen = np.ones((count, block), bool)
    for b, length in enumerate(keys):
        own = np.zeros(int(pages[b]) * block, bool)
        own[:length] = True
        unseen[table[b, : pages[b]]] = ~own.reshape(-1, block)
    cache[unseen], scale[unseen] = np.nan, np.nan
    loose = _LOOSE if options.get("bounds") == "loose" else 0
    return PagedMqaLogits(
        dtype=case.dtype,
        fp8=fp8,
        q=q,
        cache=cache,
        weights=drawn_weights(shape[:2], draw),
        scale=scale,
        table=table,
        keys=keys,
        starts_q=cumulated(queries),
        one_query=one,
        max_seqlen_k=int(keys.max(initial=0)) + loose,
    )
