"""Kernels with one wrong step."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from xattn_conformance.mutants.numbers import BITS, F32, nearest, to_dtype, toward_zero
from xattn_conformance.ops.attention.mutants.grouped import Bools, Grouped
from xattn_conformance.ops.attention.mutants.kernel import INF, Kernel

ZERO = np.float32(0)
TILE = 64


class CapAfterBias(Kernel):
    def logits(self, scores: F32, keys: slice, visible: Bools) -> F32:
        return np.where(visible, self.cap(self.scaled(scores) + self.grouped.added(keys)), -INF)


class Unread(Kernel):
    """Reads what no query may see, as every kernel does that masks scores and not loads."""

    def values(self, keys: slice, seen: Bools) -> F32:
        return super().values(keys, np.ones_like(seen))


class CapAfterMask(Unread):
    """What is hidden keeps a score of -softcap."""

    def logits(self, scores: F32, keys: slice, visible: Bools) -> F32:
        masked = np.where(visible, self.scaled(scores), -INF)
        logits: F32 = self.cap(masked) + np.where(visible, self.grouped.added(keys), ZERO)
        return logits


class ScaleAfterCap(Kernel):
    def query(self) -> F32:
        return self.numbers.flush(self.grouped.q)  # not scaled first, whatever is declared

    def scaled(self, scores: F32) -> F32:
        scaled: F32 = scores * self.grouped.scale
        return scaled

    def logits(self, scores: F32, keys: slice, visible: Bools) -> F32:
        return np.where(visible, self.scaled(self.cap(scores)) + self.grouped.added(keys), -INF)


class CapNotMultiplied(Kernel):
    def cap(self, scaled: F32) -> F32:
        cap = np.float32(1 if self.problem.softcap is None else self.problem.softcap)
        capped: F32 = super().cap(scaled) / cap
        return capped


class FiniteMask(Unread):
    """Hidden keys get -1e4 in place of -inf."""

    def logits(self, scores: F32, keys: slice, visible: Bools) -> F32:
        logits = self.cap(self.scaled(scores)) + np.where(visible, self.grouped.added(keys), ZERO)
        return np.where(visible, logits, np.where(np.isfinite(logits), logits, ZERO) - np.float32(1e4))


class NoMaximum(Kernel):
    def top(self, top: F32, logits: F32) -> F32:
        return np.zeros_like(top)


class NoRescale(Kernel):
    def accumulate(self, acc: F32, factor: F32, p: F32, v: F32) -> F32:
        return super().accumulate(acc, np.ones_like(factor), p, v)


class NoRescaleOfDenominator(Kernel):
    def denominator(self, total: F32, factor: F32, p: F32) -> F32:
        return super().denominator(total, np.ones_like(factor), p)


class DenominatorOfLastTile(Kernel):
    def denominator(self, total: F32, factor: F32, p: F32) -> F32:
        return super().denominator(np.zeros_like(total), factor, p)


class UnguardedTile(Kernel):
    """Where a row has seen nothing yet, -inf is subtracted from -inf."""

    def base(self, top: F32) -> F32:
        return top


class SinkInMaximumOnly(Kernel):
    def start(self, number: int) -> tuple[F32, F32]:
        top, total = super().start(number)
        return top, np.zeros_like(total)


class SinkInEveryPart(Kernel):
    def start(self, number: int) -> tuple[F32, F32]:
        return super().start(0)


class EqualParts(Kernel):
    def merge(self, parts: Sequence[tuple[F32, F32]]) -> tuple[F32, F32]:
        return np.stack([out for out, _ in parts]).mean(axis=0), super().merge(parts)[1]


class LastPart(Kernel):
    """The parts overwrite each other."""

    def merge(self, parts: Sequence[tuple[F32, F32]]) -> tuple[F32, F32]:
        return parts[-1][0], super().merge(parts)[1]


class StaleTile(Kernel):
    """The values of a tile are those of the tile before it."""

    def values(self, keys: slice, seen: Bools) -> F32:
        back = min(keys.start, self.block)
        return super().values(slice(keys.start - back, keys.stop - back), np.ones_like(seen))


class OverlappingTiles(Kernel):
    """The last key of every tile is counted in the next one as well."""

    def tiles(self) -> list[slice]:
        return [slice(max(tile.start - 1, 0), tile.stop) for tile in super().tiles()]


class GapsBetweenTiles(Kernel):
    def tiles(self) -> list[slice]:
        tiles = [slice(tile.start + (tile.start > 0), tile.stop) for tile in super().tiles()]
        return [tile for tile in tiles if tile.start < tile.stop]


class SkipsByFirstQuery(Kernel):
    """Causal: a tile of keys is skipped where the first of 64 queries does not see it."""

    def visible(self, keys: slice) -> Bools:
        read: Bools = _diagonal_of(self.grouped, of_last=False) >= keys.start
        return super().visible(keys) & read


class SkipsByLastQuery(Kernel):
    """A window's left side: a tile of keys is skipped where the last of 64 queries does not see it."""

    def visible(self, keys: slice) -> Bools:
        left = (self.problem.window or (None, None))[0] or 0
        read: Bools = _diagonal_of(self.grouped, of_last=True) - left < keys.stop
        return super().visible(keys) & read


def _diagonal_of(grouped: Grouped, of_last: bool) -> NDArray[np.int64]:
    """The diagonal of the first or last query of each query's tile, (batch, 1, 1, seqlen_q, 1)."""
    diagonal = grouped.distance(slice(0, 1))
    rows = np.arange(grouped.rows[3]) // TILE * TILE + (TILE - 1 if of_last else 0)
    return diagonal[:, :, :, np.minimum(rows, grouped.rows[3] - 1)]


class ScoresAccumulatedIn16Bit(Kernel):
    def scores(self, q: F32, k: F32) -> F32:
        return in_16_bit(self, q, k.swapaxes(-1, -2))


class ValuesAccumulatedIn16Bit(Kernel):
    def accumulate(self, acc: F32, factor: F32, p: F32, v: F32) -> F32:
        return in_16_bit(self, p, v, to_dtype(acc * factor, self.problem.dtype))


def in_16_bit(kernel: Kernel, a: F32, b: F32, acc: F32 | None = None) -> F32:
    """a @ b, with the sum rounded to the dtype after every 16 products."""
    acc = np.zeros((1, 1, 1, 1, 1), dtype=np.float32) if acc is None else acc
    for start in range(0, a.shape[-1], 16):
        some = slice(start, start + 16)
        acc = to_dtype(acc + kernel.numbers.matmul(a[..., some], b[..., some, :]), kernel.problem.dtype)
    return acc


class ProbabilitiesCutOff(Kernel):
    def probabilities(self, p: F32) -> F32:
        return toward_zero(p, BITS[self.problem.dtype])


class ProbabilitiesInFp8(Kernel):
    def probabilities(self, p: F32) -> F32:
        return nearest(p, 4)


class ExpOf6Bits(Kernel):
    def probabilities(self, p: F32) -> F32:
        return super().probabilities(nearest(p, 6))

    def denominator(self, total: F32, factor: F32, p: F32) -> F32:
        return super().denominator(total, factor, nearest(p, 6))


class NotNormalised(Kernel):
    def finish(self, acc: F32, total: F32, top: F32) -> tuple[F32, F32]:
        return acc, super().finish(acc, total, top)[1]


class LseWithoutMaximum(Kernel):
    def finish(self, acc: F32, total: F32, top: F32) -> tuple[F32, F32]:
        with np.errstate(divide="ignore"):
            return super().finish(acc, total, top)[0], np.log(total)
