"""Backward kernels with one wrong step."""

from __future__ import annotations

import numpy as np

from xattn_conformance.array import Array
from xattn_conformance.mutants.numbers import BITS, F32, to_dtype, toward_zero
from xattn_conformance.ops.attention.mutants.backward import Backward
from xattn_conformance.ops.attention.mutants.grouped import Bools
from xattn_conformance.ops.attention.mutants.kernel import INF
from xattn_conformance.ops.attention.mutants.kernels import in_16_bit

ONE = np.float32(1)


class DeltaIgnored(Backward):
    def delta(self) -> F32:
        return -self.dlse


class DeltaWithoutSink(Backward):
    """delta as if the probabilities of the keys added up to 1."""

    def delta(self) -> F32:
        share = np.where(self.lse == -INF, 0, self.numbers.exp(self.grouped.sinks - self.lse))
        delta: F32 = (super().delta() + self.dlse) / np.maximum(ONE - share, np.float32(1e-6)) - self.dlse
        return delta


class DeltaOfNextRow(Backward):
    def delta(self) -> F32:
        return np.roll(super().delta(), 1, axis=3)


class DlseIgnored(Backward):
    def delta(self) -> F32:
        delta: F32 = super().delta() + self.dlse
        return delta


class DlseSign(Backward):
    def delta(self) -> F32:
        delta: F32 = super().delta() + 2 * self.dlse
        return delta


class SlopeMissing(Backward):
    def slope(self, scores: F32, visible: Bools) -> F32:
        return np.ones_like(super().slope(scores, visible))


class SlopeNotSquared(Backward):
    """1 - tanh in place of 1 - tanh^2."""

    def slope(self, scores: F32, visible: Bools) -> F32:
        slope = super().slope(scores, visible)
        capped = np.sqrt(np.maximum(1 - slope, 0)) * np.sign(self.kernel.scaled(scores))
        wrong: F32 = np.where(visible, 1 - capped, np.float32(0))
        return wrong


class SlopeTwice(Backward):
    def slope(self, scores: F32, visible: Bools) -> F32:
        return np.square(super().slope(scores, visible))


class KeysOfLastHead(Backward):
    """The heads of a group overwrite each other's dK."""

    def reduce(self, name: str, shares: F32) -> F32:
        return shares[:, :, -1] if name == "dk" else super().reduce(name, shares)


class ValuesOfLastHead(Backward):
    def reduce(self, name: str, shares: F32) -> F32:
        return shares[:, :, -1] if name == "dv" else super().reduce(name, shares)


class GroupAveraged(Backward):
    def reduce(self, name: str, shares: F32) -> F32:
        average: F32 = super().reduce(name, shares) / np.float32(shares.shape[2])
        return average


class GroupSummedIn16Bit(Backward):
    """The heads of a group add their shares to dK and dV in the dtype, one after the other."""

    def reduce(self, name: str, shares: F32) -> F32:
        total = np.zeros_like(shares[:, :, 0])
        for member in range(shares.shape[2]):
            total = to_dtype(total + shares[:, :, member], self.problem.dtype)
        return total


class GroupInterleaved(Backward):
    """Query head h adds to key-value head h % nheads_k."""

    def reduce(self, name: str, shares: F32) -> F32:
        batch, nheads_k, group, *rest = shares.shape
        return super().reduce(name, shares.reshape(batch, group, nheads_k, *rest).swapaxes(1, 2))


class QueryOfLastTile(Backward):
    """The tiles of keys overwrite each other's dQ."""

    def accumulate(self, dq: F32, ds: F32, k: F32) -> F32:
        return super().accumulate(np.zeros_like(dq), ds, k)


class QueryAccumulatedIn16Bit(Backward):
    def accumulate(self, dq: F32, ds: F32, k: F32) -> F32:
        return in_16_bit(self.kernel, ds, k, to_dtype(dq, self.problem.dtype))


class KeysAccumulatedIn16Bit(Backward):
    def key_gradients(self, ds: F32) -> F32:
        return in_16_bit(self.kernel, ds.swapaxes(-1, -2), self.grouped.q)


class ScoreGradientsCutOff(Backward):
    """dS is cut off, not rounded."""

    def score_gradients(self, p: F32, dp: F32, delta: F32) -> F32:
        return toward_zero(super().score_gradients(p, dp, delta), BITS[self.problem.dtype])


class ProbabilitiesAgain(Backward):
    """dZ = p^2 (dP - delta)."""

    def score_gradients(self, p: F32, dp: F32, delta: F32) -> F32:
        return super().score_gradients(p * p, dp, delta)


class DeadUniform(Backward):
    """Rows that see nothing attend to every key alike."""

    def probabilities(self, logits: F32) -> F32:
        dead = np.isneginf(logits).all(axis=-1, keepdims=True) & np.isneginf(self.lse)
        return np.where(dead, np.float32(1 / max(self.grouped.seqlen_k, 1)), super().probabilities(logits))


class DeadNan(Backward):
    """-inf is subtracted from -inf."""

    def probabilities(self, logits: F32) -> F32:
        with np.errstate(invalid="ignore"):
            return self.numbers.exp(logits - self.lse)


class LastQueriesDropped(Backward):
    """dK leaves out the last tile of 16 queries."""

    def key_gradients(self, ds: F32) -> F32:
        return super().key_gradients(np.where(self.counted, ds, np.float32(0)))

    @property
    def counted(self) -> Bools:
        queries = np.arange(self.grouped.rows[3])[:, None]
        counted: Bools = queries < (self.grouped.rows[3] - 1) // 16 * 16
        return counted


class LastQueryDropped(LastQueriesDropped):
    @property
    def counted(self) -> Bools:
        counted: Bools = np.arange(self.grouped.rows[3])[:, None] < self.grouped.rows[3] - 1
        return counted


class BiasBySlope(Backward):
    """dbias goes through the softcap, although the bias does not."""

    def bias_gradient(self, dlogits: F32) -> Array:
        everything = slice(None)
        visible = self.kernel.visible(everything)
        k = self.kernel.keys(everything, self.grouped.seen(visible))
        slope = self.slope(self.kernel.scores(self.kernel.query(), k), visible)
        return super().bias_gradient(dlogits * slope)


class BiasScaled(Backward):
    def bias_gradient(self, dlogits: F32) -> Array:
        return super().bias_gradient(dlogits * self.grouped.scale)


class BiasAveraged(Backward):
    """dbias is averaged over what the bias was broadcast over."""

    def bias_gradient(self, dlogits: F32) -> Array:
        total = super().bias_gradient(dlogits)
        return total * (total.size / dlogits.size)


class BiasOfFirst(Backward):
    """dbias is what the first batch row, head, query and key give, not the sum."""

    def bias_gradient(self, dlogits: F32) -> Array:
        total = super().bias_gradient(dlogits)
        whole = dlogits.reshape(self.problem.scores_shape)
        first = whole[tuple(slice(size) for size in total.shape)]
        return to_dtype(first, self.problem.dtype).astype(np.float64)


class BiasOfLastBatchRow(Backward):
    """The batch rows overwrite each other's dbias."""

    def bias_gradient(self, dlogits: F32) -> Array:
        last = np.zeros_like(dlogits)
        last[-1] = dlogits[-1]
        return super().bias_gradient(last)


class SinksWithoutDlse(Backward):
    def sink_gradient(self, delta: F32) -> Array:
        return super().sink_gradient(delta + self.dlse)


class SinksOfLastRow(Backward):
    """The queries overwrite each other's dsinks."""

    def sink_gradient(self, delta: F32) -> Array:
        last = np.zeros_like(delta)
        last[:, :, :, -1] = delta[:, :, :, -1]
        return super().sink_gradient(last)
