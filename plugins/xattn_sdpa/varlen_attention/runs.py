"""Packed sequences as dense problems: consecutive sequences of equal lengths are one batch, by views alone."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from itertools import pairwise

from torch import Tensor

from xattn import InvalidArgumentError
from xattn.plugin.geometry import Geometry
from xattn_sdpa.attention import fused
from xattn_sdpa.attention.tiling import Tile


@dataclass(frozen=True)
class Run:
    """`count` sequences from `first` on, each of the same geometry. first_q, first_k: where their tokens begin."""

    first: int
    count: int
    first_q: int
    first_k: int
    geometry: Geometry

    @property
    def sequences(self) -> slice:
        return slice(self.first, self.first + self.count)

    @property
    def end_q(self) -> int:
        return self.first_q + self.count * self.geometry.seqlen_q

    @functools.cached_property
    def tile(self) -> Tile | None:
        """The tile that is all of a sequence, as `fused.only_tile` has it."""
        return fused.only_tile(self.geometry)

    def queries(self, x: Tensor, dim: int = 0) -> Tensor:
        """A view of the run's part of a packed tensor: its tokens, dimension `dim`, become (count, seqlen_q)."""
        return self._part(x, dim, self.first_q, self.geometry.seqlen_q)

    def keys(self, x: Tensor) -> Tensor:
        """As `queries`: (count, seqlen_k, ...)."""
        return self._part(x, 0, self.first_k, self.geometry.seqlen_k)

    def _part(self, x: Tensor, dim: int, first: int, seqlen: int) -> Tensor:
        part: Tensor = x.narrow(dim, first, self.count * seqlen).unflatten(dim, (self.count, seqlen))
        return part


@functools.lru_cache(maxsize=128)
def runs(
    ends_q: tuple[int, ...],
    ends_k: tuple[int, ...],
    offsets: tuple[int | None, ...],
    left: int | None,
    right: int | None,
) -> tuple[Run, ...]:
    """ends_q, ends_k: the values of cu_seqlens. offsets: one a sequence, or one for all; None as `Settings` has it.
    left, right: the band.

    Kept, for all layers of a model have the same lengths.
    """
    found: list[Run] = []
    if len(offsets) == 1:
        offsets *= len(ends_q) - 1
    for name, ends in (("cu_seqlens_q", ends_q), ("cu_seqlens_k", ends_k)):
        # Of a held plan nobody else looks.
        if ends[0] != 0 or any(end < start for start, end in pairwise(ends)):
            raise InvalidArgumentError(name, str(ends)[:60], "values from 0 on that do not decrease")
    sequences = zip(pairwise(ends_q), pairwise(ends_k), offsets, strict=True)
    for b, ((first_q, end_q), (first_k, end_k), offset) in enumerate(sequences):
        seqlen_q, seqlen_k = end_q - first_q, end_k - first_k
        geometry = Geometry(seqlen_q, seqlen_k, left, right, seqlen_k - seqlen_q if offset is None else offset)
        if found and found[-1].geometry == geometry:
            found[-1] = replace(found[-1], count=found[-1].count + 1)
        else:
            found.append(Run(b, 1, first_q, first_k, geometry))
    return tuple(found)
