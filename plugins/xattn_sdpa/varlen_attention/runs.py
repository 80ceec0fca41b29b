"""Packed sequences as dense problems: consecutive sequences of equal lengths are one batch, by views alone."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor

from xattn import InvalidArgumentError
from xattn.plugin.geometry import Geometry


@dataclass(frozen=True)
class Run:
    """`count` sequences from `first` on, each of seqlen_q queries and seqlen_k keys. offset: as `Settings` has it."""

    first: int
    count: int
    seqlen_q: int
    seqlen_k: int
    offset: int | None

    @property
    def sequences(self) -> slice:
        return slice(self.first, self.first + self.count)

    def geometry(self, left: int | None, right: int | None) -> Geometry:
        """Of each sequence, under a band."""
        offset = self.seqlen_k - self.seqlen_q if self.offset is None else self.offset
        return Geometry(self.seqlen_q, self.seqlen_k, left, right, offset)


@functools.lru_cache(maxsize=128)
def runs(ends_q: tuple[int, ...], ends_k: tuple[int, ...], offsets: tuple[int | None, ...]) -> tuple[Run, ...]:
    """ends_q, ends_k: the values of cu_seqlens. offsets: one a sequence, or one for all.

    Kept, for all layers of a model have the same lengths.
    """
    found: list[Run] = []
    if len(offsets) == 1:
        offsets *= len(ends_q) - 1
    lengths = zip(_lengths(ends_q), _lengths(ends_k), offsets, strict=True)
    for name, ends in (("cu_seqlens_q", ends_q), ("cu_seqlens_k", ends_k)):
        # Of a held plan nobody else looks.
        if ends[0] != 0 or any(length < 0 for length in _lengths(ends)):
            raise InvalidArgumentError(name, str(ends)[:60], "values from 0 on that do not decrease")
    for b, (seqlen_q, seqlen_k, offset) in enumerate(lengths):
        last = found[-1] if found else None
        if last is not None and (last.seqlen_q, last.seqlen_k, last.offset) == (seqlen_q, seqlen_k, offset):
            found[-1] = Run(last.first, last.count + 1, seqlen_q, seqlen_k, offset)
        else:
            found.append(Run(b, 1, seqlen_q, seqlen_k, offset))
    return tuple(found)


def _lengths(ends: Sequence[int]) -> Iterator[int]:
    return (end - start for start, end in pairwise(ends))


def parts(x: Tensor, found: Sequence[Run], sizes: Sequence[int], dim: int = 0) -> list[Tensor]:
    """Views of a packed tensor, one a run: its tokens, dimension `dim`, become (count, tokens of a sequence).

    sizes: the tokens of a sequence, run by run. What belongs to no sequence is in none."""
    split = [run.count * size for run, size in zip(found, sizes, strict=True)]
    pieces = x.split([*split, x.shape[dim] - sum(split)], dim)
    return [piece.unflatten(dim, (run.count, size)) for piece, run, size in zip(pieces[:-1], found, sizes, strict=True)]
