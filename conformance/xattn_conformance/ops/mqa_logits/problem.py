"""The values of one call of mqa_logits, and from a case to them: the same bits on every machine."""

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

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class MqaLogits:
    """A call in the contract's words. Pure data, in float64.

    q: (total_q, nheads, headdim), k: (total_k, headdim), held exactly by `dtype`, or by FP8. weights: (total_q,
    nheads). starts, ends: (total_q,). scale: (total_k,). Keys that no row sees may be NaN.
    """

    dtype: str
    fp8: str | None
    q: Array
    k: Array
    weights: Array
    starts: Ints
    ends: Ints
    scale: Array

    @property
    def tensors(self) -> Mapping[str, tuple[NDArray[Any], str]]:
        """The tensors of the call, each with the format that holds it."""
        found = {name: held(getattr(self, name), self.dtype, self.fp8) for name in ("q", "k")}
        found |= {"weights": (self.weights, "float32"), "starts": (self.starts, "int32"), "ends": (self.ends, "int32")}
        return found if self.fp8 is None else {**found, "k_scale": (self.scale, "float32")}

    @property
    def seen(self) -> NDArray[np.bool_]:
        j = np.arange(len(self.k))
        found: NDArray[np.bool_] = (j >= self.starts[:, None]) & (j < self.ends[:, None])
        return found

    @cached_property
    def logits(self) -> Logits:
        """One group: all rows have one list of keys."""
        used: NDArray[np.bool_] = np.any(self.seen, axis=0)
        keys, scale = np.where(used[:, None], self.k, 0.0), np.where(used, self.scale, 0.0)
        rows = slice(0, len(self.q))
        group = Group(self.q, self.weights, keys, scale, self.seen, rows)
        return Logits(self.dtype, self.fp8, self.seen.shape, (group,))


def make(case: Case) -> MqaLogits:
    """Raises KeyError for an unknown recipe."""
    size, options, draw = case.shape, case.options, Draw(case.seed, STREAMS)
    total_q, total_k, fp8 = size["seqlen_q"], size["seqlen_k"], options.get("fp8")
    starts, ends = _ranges(options["ranges"], total_q, total_k, draw)
    shapes = {"q": (total_q, size["nheads"], size["headdim"]), "k": (total_k, size["headdim"])}
    q, k = (drawn(name, shape, case.family, case.dtype, fp8, draw) for name, shape in shapes.items())
    made = MqaLogits(
        dtype=case.dtype,
        fp8=fp8,
        q=q,
        k=k,
        weights=drawn_weights(shapes["q"][:2], draw),
        starts=starts,
        ends=ends,
        scale=drawn_scales((total_k,), fp8, draw),
    )
    if options.get("poison"):
        unseen: NDArray[np.bool_] = ~np.any(made.seen, axis=0)
        made.k[unseen] = np.nan
        made.scale[unseen] = np.nan
    return made


def _ranges(recipe: str, total_q: int, total_k: int, draw: Draw) -> tuple[Ints, Ints]:
    row = np.arange(total_q)
    own = row + max(total_k - total_q, 0) + 1
    random = {name: draw.integers(name, (total_q,)) % (total_k + 9) for name in ("starts", "ends")}
    # A row without keys in every third place at least.
    count = np.where(row % 3 == 0, 0, random["ends"])
    made: dict[str, tuple[Ints, Ints]] = {
        "causal": (np.zeros_like(row), own),
        "packed": (row // 17 * 17, row + 1),
        "window": (own - 20, own),
        "anywhere": (random["starts"] - 5, random["starts"] - 5 + count),
        "all": (np.full_like(row, -(2**20)), np.full_like(row, 2**30)),
    }
    return made[recipe]
