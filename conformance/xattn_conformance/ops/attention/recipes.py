"""The tensors of a call beside q, k and v: each option's recipes, by the names that `cases.toml` explains."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Context, Decimal
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xattn_conformance.array import Array
from xattn_conformance.inputs.draw import Draw

# Logarithms and powers by decimal arithmetic: libm's last bit differs between platforms.
_DECIMAL = Context(prec=30)
_LOW = -10000.0
# Every other shape that a bias or a mask may have, spelt by its dimensions.
BROADCASTS = (
    *("k", "q1", "1k", "hqk", "hq1", "h1k", "h11", "1qk", "1q1", "11k"),
    *("111k", "11q1", "11qk", "1h11", "1h1k", "b111", "b1q1", "bh11", "bh1k", "bhq1"),
)


@dataclass(frozen=True)
class Sizes:
    """What recipes need of a case. lowest: the least finite number of its dtype."""

    batch: int
    nheads: int
    seqlen_q: int
    seqlen_k: int
    lowest: float = 0.0

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes that broadcast to the scores, by the name of a recipe."""
        return {
            "full": (self.batch, self.nheads, self.seqlen_q, self.seqlen_k),
            "heads": (1, self.nheads, self.seqlen_q, self.seqlen_k),
            "batch": (self.batch, 1, self.seqlen_q, self.seqlen_k),
            "matrix": (self.seqlen_q, self.seqlen_k),
            "keys": (self.batch, 1, 1, self.seqlen_k),
            "queries": (1, self.nheads, self.seqlen_q, 1),
            "scalar": (),
            **{name: self._spelt(name) for name in BROADCASTS},
        }

    def _spelt(self, name: str) -> tuple[int, ...]:
        letters = {"b": self.batch, "h": self.nheads, "q": self.seqlen_q, "k": self.seqlen_k, "1": 1}
        return tuple(letters[letter] for letter in name)


def sinks(recipe: str, sizes: Sizes, draw: Draw) -> Array:
    """(nheads,)"""
    if recipe == "normal":
        return draw.normal("sinks", (sizes.nheads,))
    log = float(_DECIMAL.ln(Decimal(max(sizes.seqlen_k, 1))))
    return np.full(sizes.nheads, {"log": log, "zero": 0.0, "large": 30.0, "small": -30.0}[recipe])


def alibi_slopes(recipe: str, sizes: Sizes, draw: Draw) -> Array:
    """(nheads,), or (batch, nheads) for "batch"."""
    if recipe == "steep":
        return np.arange(1.0, sizes.nheads + 1)
    shape = (sizes.batch, sizes.nheads) if recipe == "batch" else (sizes.nheads,)
    count = int(np.prod(shape))
    powers = [_DECIMAL.divide(Decimal(-8 * (n + 1)), Decimal(count)) for n in range(count)]
    slopes = [float(_DECIMAL.power(Decimal(2), power)) for power in powers]
    return np.array(slopes).reshape(shape)


def bias(recipe: str, sizes: Sizes, draw: Draw) -> Array:
    """The recipe's name is its shape, but for three."""
    if recipe == "holes":
        shape = sizes.shapes["full"]
        hidden = draw.integers("holes", shape) % 10 < 3
        hidden[..., -1:] = True
        return np.where(hidden, -np.inf, draw.normal("bias", shape))
    if recipe in ("low", "lowest"):
        shape = sizes.shapes["batch"]
        lowered, ordinary = draw.integers("holes", shape) % 2 == 0, draw.normal("bias", shape)
        if recipe == "lowest":
            return _lowest(lowered, ordinary, sizes)
        lowered[:, :, ::3] = True
        return np.where(lowered, _LOW, ordinary)
    return draw.normal("bias", sizes.shapes[recipe])


def _lowest(lowered: NDArray[np.bool_], ordinary: Array, sizes: Sizes) -> Array:
    """Of a score beside the least number nothing is left, nor of the logarithm of how many there are: merging parts by
    their lse loses a row of several such keys and no other. So a row has an ordinary key as well, or one key in all,
    that of the query's own number: with no more queries than keys, causal leaves it in sight."""
    own = np.arange(sizes.seqlen_q)[:, None] == np.arange(sizes.seqlen_k)
    mixed = np.where(lowered & ~own, sizes.lowest, ordinary)
    alone = (np.arange(sizes.batch)[:, None] + np.arange(sizes.seqlen_q)) % 3 == 0
    return np.where(alone[:, None, :, None], np.where(own, sizes.lowest, -np.inf), mixed)


def mask(recipe: str, sizes: Sizes, draw: Draw) -> NDArray[np.bool_]:
    """Of the recipe's shape; True may be attended to."""
    if recipe == "rows":
        queries = np.arange(sizes.seqlen_q) % 3 != 2
        return np.tile(queries[:, None], (sizes.batch, 1, 1, 1))
    shape = sizes.shapes["full" if recipe in ("random", "one") else recipe]
    drawn = draw.integers("mask", (*shape[:-1], 1) if recipe == "one" else shape)
    key = np.arange(sizes.seqlen_k)
    seen: NDArray[np.bool_] = key == drawn % max(sizes.seqlen_k, 1) if recipe == "one" else drawn % 10 < 7
    if recipe == "keys":
        row = np.arange(sizes.batch).reshape(-1, 1, 1, 1)
        seen &= key < sizes.seqlen_k * (row + 2) // (row + 4)
    return seen


def seqlens_k(recipe: str, sizes: Sizes, draw: Draw) -> NDArray[np.int64]:
    """(batch,), never above seqlen_k."""
    longest, row = sizes.seqlen_k, np.arange(sizes.batch)
    made: dict[str, NDArray[np.int64]] = {
        "ragged": longest * (row + 1) // (row + 2),
        "last": np.full_like(row, max(longest - 1, 0)),
        "zero": longest * (row % 2),
        "one": np.ones_like(row),
        "tiles": 63 + row % 3,
        "mixed": np.choose(row % 4, (longest, 0, 1, longest // 2 + 1)),
    }
    lengths: NDArray[np.int64] = np.minimum(made[recipe], longest)
    return lengths


RECIPES: dict[str, tuple[Callable[[str, Sizes, Draw], Any], tuple[str, ...]]] = {
    "sinks": (sinks, ("normal", "log", "zero", "large", "small")),
    "alibi_slopes": (alibi_slopes, ("powers", "batch", "steep")),
    "bias": (
        bias,
        ("full", "heads", "batch", "matrix", "keys", "queries", "holes", "low", "lowest", "scalar", *BROADCASTS),
    ),
    "mask": (mask, ("random", "heads", "matrix", "keys", "rows", "one", "scalar", *BROADCASTS)),
    "seqlens_k": (seqlens_k, ("ragged", "last", "zero", "one", "tiles", "mixed")),
}


def tensors(options: Mapping[str, Any], sizes: Sizes, draw: Draw) -> dict[str, Any]:
    """The tensors among a case's options, unrounded. Raises ValueError for an unknown recipe."""
    made = {}
    for name, recipe in options.items():
        if name in RECIPES:
            function, known = RECIPES[name]
            if recipe not in known:
                raise ValueError(f"no recipe {recipe!r} for {name}; known: {', '.join(known)}")
            made[name] = function(recipe, sizes, draw)
    return made
