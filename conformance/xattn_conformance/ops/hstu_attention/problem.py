"""The values of one call of hstu_attention, and from a case to them: the same bits on every machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xattn_conformance.array import Array
from xattn_conformance.case import Case
from xattn_conformance.inputs.draw import Draw
from xattn_conformance.inputs.formats import round_to
from xattn_conformance.ops.hstu_attention.families import FAMILIES, STREAMS
from xattn_conformance.ops.sequences import Ints, cumulated, lengths, slices

# Rows after the last sequence, and how far above the longest a loose bound lies.
PADDING = 5
_LOOSE = 30


@dataclass(frozen=True)
class Sequence:
    """One sequence, heads first: q, k (nheads, n, headdim), v, dout (nheads, n, headdim_v)."""

    q: Array
    k: Array
    v: Array
    targets: int
    dout: Array | None


@dataclass(frozen=True)
class Hstu:
    """A call in the contract's words. Pure data, in float64, held exactly by `dtype`.

    q, k: (total, nheads, headdim), v, dout: (total, nheads, headdim_v), NaN in rows of no sequence. cu_seqlens: (batch
    + 1,). num_targets: (batch,). dout: the gradient that comes in; None where none is asked for.
    """

    dtype: str
    q: Array
    k: Array
    v: Array
    cu_seqlens: Ints
    norm: float
    scale: float
    causal: bool = True
    num_targets: Ints | None = None
    max_attn_len: int | None = None
    contextual_seqlen: int | None = None
    max_seqlen: int | None = None
    deterministic: bool = False
    dout: Array | None = None

    @property
    def rows(self) -> list[slice]:
        return slices(self.cu_seqlens)

    @property
    def before(self) -> int:
        """So many tokens share the first place with the one after them."""
        return max((self.contextual_seqlen or 0) - 1, 0)

    @property
    def sequences(self) -> list[Sequence]:
        targets = [0] * len(self.rows) if self.num_targets is None else self.num_targets.tolist()

        def of(x: Array, rows: slice) -> Array:
            return np.swapaxes(x[rows], 0, 1)

        return [
            Sequence(
                q=of(self.q, rows),
                k=of(self.k, rows),
                v=of(self.v, rows),
                targets=count,
                dout=None if self.dout is None else of(self.dout, rows),
            )
            for rows, count in zip(self.rows, targets, strict=True)
        ]

    @property
    def tensors(self) -> Mapping[str, tuple[NDArray[Any], str]]:
        """The tensors of the call, each with the format that holds it."""
        found: dict[str, tuple[NDArray[Any], str]] = {"q": (self.q, self.dtype), "k": (self.k, self.dtype)}
        found |= {"v": (self.v, self.dtype), "cu_seqlens": (self.cu_seqlens, "int32")}
        if self.num_targets is not None:
            found["num_targets"] = self.num_targets, "int32"
        return found

    @property
    def incoming(self) -> Mapping[str, tuple[NDArray[Any], str]]:
        return {} if self.dout is None else {"dout": (self.dout, self.dtype)}


def make(case: Case) -> Hstu:
    """Raises KeyError for an unknown family or recipe."""
    size, options, draw = case.shape, dict(case.options), Draw(case.seed, STREAMS)
    counts = lengths(options.pop("q"), size["batch"], size["seqlen_q"])
    padding = PADDING if options.pop("padding", False) else 0
    bounds = {"none": None, "exact": 0, "loose": _LOOSE}[options.pop("bounds", "exact")]
    total, nheads = int(counts.sum()), size["nheads"]
    widths = {"q": size["headdim"], "k": size["headdim"], "v": size["headdim_v"], "dout": size["headdim_v"]}
    drawn = {name: draw.normal(name, (total, nheads, width)) for name, width in widths.items()}
    drawn["q"], drawn["k"] = FAMILIES[case.family](drawn["q"], drawn["k"])
    held = {name: _padded(round_to(x, case.dtype), padding) for name, x in drawn.items()}
    before = max(options.get("contextual_seqlen", 0) - 1, 0)
    recipe = options.pop("targets", None)
    return Hstu(
        dtype=case.dtype,
        q=held["q"],
        k=held["k"],
        v=held["v"],
        dout=held["dout"] if case.grads else None,
        cu_seqlens=cumulated(counts),
        num_targets=None if recipe is None else _targets(recipe, np.maximum(counts - before, 0)),
        max_seqlen=None if bounds is None else int(counts.max(initial=0)) + bounds,
        **options,
    )


def _padded(x: Array, rows: int) -> Array:
    return np.concatenate([x, np.full((rows, *x.shape[1:]), np.nan)])


def _targets(recipe: str, most: Ints) -> Ints:
    """(batch,), of sequences that may have so many."""
    row = np.arange(len(most))
    made: dict[str, Ints] = {
        "few": row % 3 + 1,
        "most": 2 * most // 3,
        "all": most,
        "turns": np.where(row % 2, 0, most // 2),
    }
    return np.minimum(made[recipe], most)
