"""A right attention kernel, as flash-attention works: tiles of keys, online softmax, float32 and declared roundings.

All batch rows and heads go through the same tiles together. A wrong kernel overrides one method (see `kernels.py`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from xattn_conformance.array import Array
from xattn_conformance.mutants.numbers import F32, Numbers
from xattn_conformance.ops.attention.mutants.grouped import Bools, Grouped
from xattn_conformance.ops.attention.problem import Problem
from xattn_conformance.tolerance.arithmetic import Arithmetic

INF = np.float32(np.inf)


class Kernel:
    """block: keys of a tile, None for all of them. splits: parts of the keys that are computed apart and merged by
    their lse. backwards: whether the tiles go from the last to the first."""

    def __init__(
        self,
        problem: Problem,
        arithmetic: Arithmetic,
        *,
        block: int | None = 64,
        splits: int = 1,
        backwards: bool = False,
    ) -> None:
        self.problem = problem
        self.grouped = Grouped(problem)
        self.numbers = Numbers(arithmetic, problem.dtype)
        self.block = block or max(self.grouped.seqlen_k, 1)
        self.splits = splits
        self.backwards = backwards

    def run(self) -> dict[str, Array]:
        """out (batch, nheads, seqlen_q, headdim_v) with values of the dtype, lse (batch, nheads, seqlen_q, 1)."""
        tiles = self.tiles()
        share = -(-len(tiles) // self.splits)
        parts = [self.part(tiles[n * share : (n + 1) * share], n) for n in range(self.splits)]
        out, lse = self.merge(parts) if self.splits > 1 else parts[0]
        return {"out": self.grouped.result(self.numbers.at("input", out)), "lse": self.grouped.result(lse)}

    def tiles(self) -> list[slice]:
        ends = range(0, self.grouped.seqlen_k, self.block)
        tiles = [slice(start, min(start + self.block, self.grouped.seqlen_k)) for start in ends]
        return tiles[::-1] if self.backwards else tiles

    def part(self, tiles: Sequence[slice], number: int) -> tuple[F32, F32]:
        """out, before it is rounded, and lse over some of the keys."""
        top, total = self.start(number)
        acc = np.zeros((*self.grouped.rows, self.problem.v.shape[3]), dtype=np.float32)
        for keys in tiles:
            visible = self.visible(keys)
            seen = self.grouped.seen(visible)
            logits = self.logits(self.scores(self.query(), self.keys(keys, seen)), keys, visible)
            new = self.top(top, logits)
            base = self.base(new)
            with np.errstate(invalid="ignore"):
                p, factor = self.numbers.exp(logits - base), self.numbers.exp(top - base)
            total = self.denominator(total, factor, p)
            acc = self.accumulate(acc, factor, self.probabilities(p), self.values(keys, seen))
            top = new
        return self.finish(acc, total, top)

    def start(self, number: int) -> tuple[F32, F32]:
        """Largest logit so far and denominator: the sink, which the first part counts."""
        top = np.broadcast_to(self.grouped.sinks if number == 0 else -INF, (*self.grouped.rows, 1))
        return top, np.where(top == -INF, np.float32(0), np.float32(1))

    def visible(self, keys: slice) -> Bools:
        return self.grouped.visible(keys)

    def query(self) -> F32:
        q = self.numbers.flush(self.grouped.q)
        return self.numbers.at("input", q * self.grouped.scale) if self.numbers.arithmetic.scaled_q else q

    def keys(self, keys: slice, seen: Bools) -> F32:
        """Keys that no query sees may hold anything, and 0 * NaN is NaN: they are not read. Neither are values."""
        return self.numbers.flush(np.where(seen, self.grouped.k[..., keys, :], np.float32(0)))

    def values(self, keys: slice, seen: Bools) -> F32:
        return self.numbers.flush(np.where(seen, self.grouped.v[..., keys, :], np.float32(0)))

    def scores(self, q: F32, k: F32) -> F32:
        return self.numbers.at(self.numbers.arithmetic.scores, self.numbers.matmul(q, k.swapaxes(-1, -2)))

    def logits(self, scores: F32, keys: slice, visible: Bools) -> F32:
        """Scale, softcap, bias and ALiBi, masks; -inf where the key is hidden."""
        with np.errstate(invalid="ignore", over="ignore"):
            return np.where(visible, self.cap(self.scaled(scores)) + self.grouped.added(keys), -INF)

    def scaled(self, scores: F32) -> F32:
        return scores if self.numbers.arithmetic.scaled_q else scores * self.grouped.scale

    def cap(self, scaled: F32) -> F32:
        if self.problem.softcap is None:
            return scaled
        softcap = np.float32(self.problem.softcap)
        capped: F32 = softcap * self.numbers.tanh(scaled / softcap)
        return capped

    def top(self, top: F32, logits: F32) -> F32:
        largest: F32 = np.maximum(top, logits.max(axis=-1, keepdims=True))
        return largest

    def base(self, top: F32) -> F32:
        """What is subtracted from the logits: 0 for rows that have seen nothing yet."""
        return np.where(top == -INF, np.float32(0), top)

    def denominator(self, total: F32, factor: F32, p: F32) -> F32:
        grown: F32 = total * factor + p.sum(axis=-1, keepdims=True)
        return grown

    def probabilities(self, p: F32) -> F32:
        return self.numbers.at(self.numbers.arithmetic.probabilities, p)

    def accumulate(self, acc: F32, factor: F32, p: F32, v: F32) -> F32:
        with np.errstate(invalid="ignore", over="ignore"):
            grown: F32 = acc * factor + self.numbers.matmul(p, v)
        return grown

    def finish(self, acc: F32, total: F32, top: F32) -> tuple[F32, F32]:
        """Rows that saw nothing have 0 and -inf, or the sink."""
        with np.errstate(divide="ignore", invalid="ignore"):
            lse = np.where(total == 0, -INF, self.base(top) + np.log(total))
            return self.numbers.flush(acc / np.where(total == 0, np.float32(1), total)), lse

    def merge(self, parts: Sequence[tuple[F32, F32]]) -> tuple[F32, F32]:
        outs = np.stack([self.numbers.at(self.numbers.arithmetic.partial_outputs, out) for out, _ in parts])
        lses = np.stack([lse for _, lse in parts])
        top = lses.max(axis=0)
        with np.errstate(invalid="ignore"):
            shares = self.numbers.exp(lses - self.base(top))
            return self.finish((shares * outs).sum(axis=0), shares.sum(axis=0), top)


def attend(
    problem: Problem, arithmetic: Arithmetic, *, block: int | None = 64, splits: int = 1, backwards: bool = False
) -> dict[str, Array]:
    """What a right kernel of this arithmetic returns: see `Kernel`."""
    return Kernel(problem, arithmetic, block=block, splits=splits, backwards=backwards).run()
