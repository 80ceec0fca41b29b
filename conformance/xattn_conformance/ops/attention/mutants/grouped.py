"""A problem as a kernel's blocks see it: float32, by key-value head, with the geometry of a range of keys."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xattn_conformance.array import Array
from xattn_conformance.mutants.numbers import F32
from xattn_conformance.ops.attention.problem import Problem

Bools = NDArray[np.bool_]


class Grouped:
    """q (batch, nheads_k, group, seqlen_q, headdim); k, v (batch, nheads_k, 1, seqlen_k, headdim or headdim_v).

    What belongs to pairs of a query and a key is (batch, nheads_k, group, seqlen_q, number of keys).
    """

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        batch, nheads, seqlen_q, self.seqlen_k = problem.scores_shape
        nheads_k = problem.k.shape[2]
        self.rows = (batch, nheads_k, nheads // nheads_k, seqlen_q)
        self.q = self.by_query(problem.q)
        self.k = self.by_key(problem.k)
        self.v = self.by_key(problem.v)
        self.scale = np.float32(1 / np.sqrt(problem.q.shape[3]) if problem.scale is None else problem.scale)
        present = np.full(batch, self.seqlen_k) if problem.seqlens_k is None else problem.seqlens_k
        self.present = present.reshape(batch, 1, 1, 1, 1)

    def by_query(self, x: Array) -> F32:
        """(batch, seqlen_q, nheads, columns) by key-value head."""
        batch, nheads_k, group, seqlen_q = self.rows
        return _float32(x.reshape(batch, seqlen_q, nheads_k, group, x.shape[3]).transpose(0, 2, 3, 1, 4))

    def by_key(self, x: Array) -> F32:
        return _float32(x.transpose(0, 2, 1, 3)[:, :, None])

    def by_row(self, x: Array) -> F32:
        """(batch, nheads, seqlen_q) as a column beside the keys."""
        return _float32(np.reshape(x, (*self.rows, 1)))

    @cached_property
    def sinks(self) -> F32:
        """-inf where there is none."""
        sinks = np.full(self.problem.q.shape[2], -np.inf) if self.problem.sinks is None else self.problem.sinks
        return _float32(sinks.reshape(1, *self.rows[1:3], 1, 1))

    @cached_property
    def slopes(self) -> F32 | None:
        slopes = self.problem.alibi_slopes
        return None if slopes is None else _float32(slopes.reshape(-1, *self.rows[1:3], 1, 1))

    def of_pairs(self, x: NDArray[Any], keys: slice) -> NDArray[Any]:
        """A bias or a mask for a range of keys."""
        picked = np.broadcast_to(x, self.problem.scores_shape)[..., keys]
        return picked.reshape(*self.rows, picked.shape[3])

    def distance(self, keys: slice) -> NDArray[np.int64]:
        """i + off - j, (batch, 1, 1, seqlen_q, number of keys)."""
        seqlen_q = self.rows[3]
        align = self.problem.align
        given = 0 if isinstance(align, str) else align
        off = self.present - seqlen_q if align == "bottom_right" else np.full_like(self.present, given)
        diagonal: NDArray[np.int64] = np.arange(seqlen_q)[:, None] + off - np.arange(self.seqlen_k)[keys]
        return diagonal

    def visible(self, keys: slice) -> Bools:
        problem, distance = self.problem, self.distance(keys)
        visible = np.broadcast_to(np.arange(self.seqlen_k)[keys] < self.present, distance.shape)
        left, right = problem.window or (None, None)
        if problem.causal:
            visible = visible & (distance >= 0)
        if left is not None:
            visible = visible & (distance <= left)
        if right is not None:
            visible = visible & (distance >= -right)
        if problem.mask is not None:
            visible = visible & self.of_pairs(problem.mask, keys)
        if problem.bias is not None:
            visible = visible & (self.of_pairs(problem.bias, keys) != -np.inf)
        return np.broadcast_to(visible, (*self.rows, distance.shape[4]))

    def seen(self, visible: Bools) -> Bools:
        """Which keys some query of their key-value head sees, as a column beside k and v."""
        seen: Bools = np.any(visible, axis=(2, 3))[:, :, None, :, None]
        return seen

    def added(self, keys: slice) -> F32:
        """What bias and ALiBi add; meaningless where the key is hidden."""
        added = np.zeros((1, 1, 1, 1, 1), dtype=np.float32)
        if self.problem.bias is not None:
            added = added + _float32(self.of_pairs(self.problem.bias, keys))
        if self.slopes is not None:
            added = added - self.slopes * _float32(np.abs(self.distance(keys)))
        return added

    def result(self, x: F32) -> Array:
        """A result by query, (batch, nheads, seqlen_q, columns)."""
        batch, nheads_k, group, seqlen_q = self.rows
        return x.reshape(batch, nheads_k * group, seqlen_q, x.shape[4]).astype(np.float64)


def _float32(x: NDArray[Any]) -> F32:
    return np.ascontiguousarray(x, dtype=np.float32)
