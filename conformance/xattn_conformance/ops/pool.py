"""Where the keys of sequences lie in a pool of pages, by a recipe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from xattn_conformance.array import Array
from xattn_conformance.ops.attention_like import Problem, poisoned_with
from xattn_conformance.ops.sequences import Ints

Flags = NDArray[np.bool_]

# More pages than 16 bits count, for the recipe "far".
FAR = 70_000
# The largest number that an entry may be.
_LARGEST = 2**31 - 1


@dataclass(frozen=True)
class Pool:
    """Both caches, (num_blocks, block_size, nheads_k, columns), and the table, (batch, pages)."""

    k_cache: Array
    v_cache: Array
    block_table: Ints


def laid_out(sequences: list[Problem], block: int, recipe: str, widths: tuple[int, int, int]) -> Pool:
    """Sequences in pages of so many places. Slots of no sequence hold NaN. Recipes:

    "shuffled": pages in no order, with free ones between them; entries past the end -1.
    "dropped":  the same, and pages that no query sees are -1 too; entries past the end the largest number.
    "stale":    the same, but what no query sees is a page of another sequence, or a free one.
    "shared":   the same, and the first page of the first sequence that fills one is that of the others as well.
    "far":      the same, past 65,536 pages.
    """
    if recipe not in ("shuffled", "dropped", "stale", "shared", "far"):
        raise ValueError(f"no pages {recipe!r}")
    counts = [-(-each.k.shape[1] // block) for each in sequences]
    blocks = 2 * sum(counts) + 3
    # 7 and a power of two have no divisor in common with an odd number that 7 does not divide.
    blocks += 2 if blocks % 7 == 0 else 0
    order = np.arange(blocks) * 7 % blocks
    if recipe == "far":
        order, blocks = order + FAR, blocks + FAR
    nheads_k, headdim, headdim_v = widths
    k_cache = np.full((blocks, block, nheads_k, headdim), np.nan)
    v_cache = np.full((blocks, block, nheads_k, headdim_v), np.nan)
    table = np.full((len(sequences), max(counts, default=0) + 1), _LARGEST if recipe == "dropped" else -1)
    if recipe == "stale":
        table[:] = order[-1]
    _fill((k_cache, v_cache), sequences, counts, table, order)
    if recipe == "shared":
        _share(table, [each.k.shape[1] >= block for each in sequences])
    if recipe in ("dropped", "stale"):
        hidden = [_hidden(each, block) for each in sequences]
        before = table.copy()
        for b, pages in enumerate(hidden):
            table[b, pages] = -1 if recipe == "dropped" else before[b - 1, 0]
    return Pool(k_cache, v_cache, table)


def _fill(
    caches: tuple[Array, Array], sequences: Sequence[Problem], counts: list[int], table: Ints, order: Ints
) -> None:
    block = caches[0].shape[1]
    taken = 0
    for b, (each, count) in enumerate(zip(sequences, counts, strict=True)):
        table[b, :count] = order[taken : taken + count]
        taken += count
        for cache, values in zip(caches, (each.k[0], each.v[0]), strict=True):
            for n, page in enumerate(table[b, :count]):
                part = values[n * block : (n + 1) * block]
                cache[page, : len(part)] = part


def _share(table: Ints, full: list[bool]) -> None:
    """The first page of one is that of all that have a full one."""
    owners = np.flatnonzero(np.array(full))
    if len(owners):
        table[owners, 0] = table[owners[0], 0]


def seen_keys(sequence: Problem) -> Flags:
    """(seqlen_k,): those that some query sees."""
    marked = poisoned_with(replace(sequence, k=np.zeros_like(sequence.k)), np.nan)
    seen: Flags = ~np.isnan(marked.k[0]).all(axis=(1, 2))
    return seen


def _hidden(sequence: Problem, block: int) -> list[int]:
    """The pages of a sequence of which no query sees a key."""
    seen = seen_keys(sequence)
    return [n for n in range(-(-len(seen) // block)) if not seen[n * block : (n + 1) * block].any()]
