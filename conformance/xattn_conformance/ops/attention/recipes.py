"""The tensors of a call beside q, k and v: each option's recipes by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xattn_conformance.inputs.draw import Draw
from xattn_conformance.problem import Array

_LOWEST = -1e4


@dataclass(frozen=True)
class Sizes:
    """The part of a case's shape that recipes need."""

    batch: int
    nheads: int
    seqlen_q: int
    seqlen_k: int

    @property
    def full(self) -> tuple[int, int, int, int]:
        return self.batch, self.nheads, self.seqlen_q, self.seqlen_k

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes that broadcast to the scores, by the name of a recipe."""
        return {
            "full": self.full,
            "heads": (1, self.nheads, self.seqlen_q, self.seqlen_k),
            "batch": (self.batch, 1, self.seqlen_q, self.seqlen_k),
            "keys": (self.batch, 1, 1, self.seqlen_k),
            "queries": (1, self.nheads, self.seqlen_q, 1),
            "matrix": (self.seqlen_q, self.seqlen_k),
        }


def sinks(recipe: str, sizes: Sizes, draw: Draw) -> Array:
    """log: about the logarithm of seqlen_k, half of the mass of normal inputs; high, low: nearly all, nearly none;
    none: -inf, no weight at all. Heads differ but under zero and none."""
    steps = np.arange(sizes.nheads) / 8
    made = {
        "log": 0.6875 * sizes.seqlen_k.bit_length() + steps,
        "zero": 0 * steps,
        "normal": draw.normal("sinks", (sizes.nheads,)),
        "high": 20 + steps,
        "low": -20 - steps,
        "none": np.full(sizes.nheads, -np.inf),
    }
    return made[recipe]


def alibi_slopes(recipe: str, sizes: Sizes, draw: Draw) -> Array:
    """heads: (nheads,), halves of halves as in the paper. batch: (batch, nheads), every row and head its own.
    steep: (nheads,), above 1."""
    head, row = np.arange(sizes.nheads), np.arange(sizes.batch)[:, None]
    halvings = {"heads": 1 + head % 8, "batch": 1 + (head + 3 * row) % 8}
    return 1.5 + head if recipe == "steep" else np.ldexp(1.0, -halvings[recipe])


def bias(recipe: str, sizes: Sizes, draw: Draw) -> Array:
    """full, heads, batch, keys, queries, matrix: normal, of that shape. masked: full, a quarter -inf and every fifth
    query wholly. low: full, every other query wholly about -1e4, which masks nothing."""
    values = draw.normal("bias", sizes.shapes.get(recipe, sizes.full))
    query = np.arange(sizes.seqlen_q)[:, None]
    if recipe == "masked":
        hidden = (draw.integers("mask", sizes.full) % 4 == 0) | (query % 5 == 4)
        return np.where(hidden, -np.inf, values)
    if recipe == "low":
        return np.where(query % 2 == 1, _LOWEST, 0.0) + values
    return values


def mask(recipe: str, sizes: Sizes, draw: Draw) -> NDArray[np.bool_]:
    """full, heads, batch, keys, queries, matrix: three quarters True, of that shape. dead: full, and every fifth query
    sees nothing. blocks: (seqlen_q, seqlen_k), documents of 16 that do not see each other. all, none: of
    (1, 1, 1, 1)."""
    query, key = np.arange(sizes.seqlen_q)[:, None], np.arange(sizes.seqlen_k)
    if recipe in ("all", "none"):
        return np.full((1, 1, 1, 1), recipe == "all")
    if recipe == "blocks":
        return query // 16 == key // 16
    seen = draw.integers("mask", sizes.shapes.get(recipe, sizes.full)) % 4 != 0
    return seen & (query % 5 != 4) if recipe == "dead" else seen


def seqlens_k(recipe: str, sizes: Sizes, draw: Draw) -> NDArray[np.int64]:
    """ragged: the first row short of seqlen_k, the last of several has all of it, others any from 1. empty: the same
    but for a first row of 0. full: seqlen_k. one: 1."""
    longest = sizes.seqlen_k
    lengths = 1 + draw.integers("seqlens_k", (sizes.batch,)) % max(longest, 1)
    lengths[:1] = {"ragged": max(5 * longest // 8, 1), "empty": 0, "full": longest, "one": 1}[recipe]
    if recipe in ("full", "one"):
        lengths[:] = lengths[:1]
    elif sizes.batch > 1:
        lengths[-1] = longest
    return np.minimum(lengths, longest)


RECIPES: dict[str, tuple[Callable[[str, Sizes, Draw], Any], tuple[str, ...]]] = {
    "sinks": (sinks, ("log", "zero", "normal", "high", "low", "none")),
    "alibi_slopes": (alibi_slopes, ("heads", "batch", "steep")),
    "bias": (bias, ("full", "heads", "batch", "keys", "queries", "matrix", "masked", "low")),
    "mask": (mask, ("full", "heads", "batch", "keys", "queries", "matrix", "dead", "blocks", "all", "none")),
    "seqlens_k": (seqlens_k, ("ragged", "empty", "full", "one")),
}


def tensors(options: Mapping[str, Any], sizes: Sizes, draw: Draw) -> dict[str, Any]:
    """The tensors among a case's options, unrounded."""
    made = {}
    for name, recipe in options.items():
        if name in RECIPES:
            function, known = RECIPES[name]
            if recipe not in known:
                raise ValueError(f"no recipe {recipe!r} for {name}; known: {', '.join(known)}")
            made[name] = function(recipe, sizes, draw)
    return made
