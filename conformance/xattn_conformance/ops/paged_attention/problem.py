"""From a case of paged_attention to the values of its call: the same bits on every machine."""

from __future__ import annotations

import numpy as np

from xattn_conformance.case import Case
from xattn_conformance.ops.paged import Flags, Paged, padded, quantised_pages, with_past
from xattn_conformance.ops.pool import Pool, laid_out
from xattn_conformance.ops.sequences import cumulated, lengths, made

# How far a loose bound lies above the longest sequence.
_LOOSE = 100


def make(case: Case) -> Paged:
    """Raises ValueError for an unknown family or recipe."""
    size, options = case.shape, dict(case.options)
    batch = size["batch"]
    one = options["q"] == "one"
    queries = np.ones(batch, np.int64) if one else lengths(options["q"], batch, size["seqlen_q"])
    keys = lengths(options.get("k", options["q"]), batch, size["seqlen_k"])
    block, pages = options.pop("block"), options.pop("pages", "shuffled")
    padding = options.pop("padding", False)
    bounds = {"none": None, "exact": 0, "loose": _LOOSE}[options.pop("bounds", "exact")]
    tree = options.pop("tree", None)
    for name in ("q", "k", "format"):
        options.pop(name, None)
    own = {name: options.pop(name) for name in ("unseen_finite", "out_dtype") if name in options}
    storage, granularity = options.pop("storage", None), options.pop("scale_of", None)
    trees = None if tree is None else [tree_of(tree, int(n)) for n in queries]
    masks = None
    if trees is not None:
        masks = [with_past(each, int(n))[None, None] for each, n in zip(trees, keys, strict=True)]
    sequences, options = made(case, options, queries, keys, masks)
    pool = laid_out(sequences, block, pages, (size["nheads_k"], size["headdim"], size["headdim_v"]))
    if own.get("unseen_finite"):
        pool = Pool(np.nan_to_num(pool.k_cache), np.nan_to_num(pool.v_cache), pool.block_table)
    longest_q = int(queries.max(initial=0)) + (bounds or 0)
    problem = Paged(
        dtype=case.dtype,
        q=np.concatenate([*(each.q[0] for each in sequences), np.zeros((0, size["nheads"], size["headdim"]))]),
        k_cache=pool.k_cache,
        v_cache=pool.v_cache,
        block_table=pool.block_table,
        seqlens_k=keys,
        cu_seqlens_q=None if one else cumulated(queries),
        max_seqlen_q=None if bounds is None else longest_q,
        max_seqlen_k=None if bounds is None else int(keys.max(initial=0)) + bounds,
        tree_mask=None if trees is None else _stacked(trees, longest_q),
        **options,
        **own,
    )
    if storage is not None:
        problem = quantised_pages(problem, storage, granularity, case.seed)
    return padded(problem) if padding else problem


def tree_of(recipe: str, queries: int) -> Flags:
    """(queries, queries): which new token sees which. "binary": token i is a child of (i - 1) // 2, and sees itself and
    those above it. "scattered": no tree, and some tokens see none of the new ones."""
    i, j = np.arange(queries)[:, None], np.arange(queries)
    if recipe == "scattered":
        return np.asarray(((i * 7 + j * 5) % 3 == 0) & (i % 4 != 1))
    if recipe != "binary":
        raise ValueError(f"no tree {recipe!r}")
    seen = np.asarray(i == j)
    above = np.broadcast_to(i, seen.shape)
    for _ in range(queries.bit_length()):
        above = np.maximum((above - 1) // 2, 0)
        seen = seen | (above == j)
    return seen


def _stacked(trees: list[Flags], columns: int) -> Flags:
    """(total_q, columns): past a sequence's own tokens all True, which means nothing."""
    rows = [np.pad(each, ((0, 0), (0, columns - len(each))), constant_values=True) for each in trees]
    whole: Flags = np.concatenate([*rows, np.ones((0, columns), bool)])
    return whole
