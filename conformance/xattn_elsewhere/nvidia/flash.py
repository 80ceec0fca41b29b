"""What the kernels of the FlashAttention family compute of one sequence, where that is wrong as well."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from xattn_conformance.ops.attention.problem import Problem

from xattn_elsewhere import exact
from xattn_elsewhere.exact import Bools, array

# The queries and keys of a tile: from 48 to 176, by head size and kind of call.
TILE = 128


@dataclass(frozen=True)
class Part:
    """One sequence. rows: of q. k, v: (keys, nheads_k, headdim). behind: values that are loaded after the last one."""

    rows: slice
    k: Tensor
    v: Tensor
    behind: Tensor


@dataclass(frozen=True)
class Kernel:
    """left, right: of the window, counted from the bottom right, None is open."""

    scale: float
    left: int | None
    right: int | None
    softcap: float

    def seen(self, seqlen_q: int, seqlen_k: int) -> Bools:
        """(seqlen_q, seqlen_k)"""
        row, key = np.arange(seqlen_q)[:, None] + seqlen_k - seqlen_q, np.arange(seqlen_k)
        seen: Bools = np.ones((seqlen_q, seqlen_k), bool)
        if self.left is not None:
            seen &= key >= row - self.left
        if self.right is not None:
            seen &= key <= row + self.right
        return seen

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, behind: Tensor, sinks: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """out (rows, nheads, headdim_v) and lse (nheads, rows). behind: values that are multiplied by 0."""
        found = exact.forward(self._problem(q[None], k[None], v[None], sinks))
        out, lse = found.out[0], found.lse[0]
        # Hidden values are multiplied by 0, and then a NaN is one still; but a row without keys is written as 0.
        seen = self.seen(len(q), len(k))
        alive = np.asarray(seen.any(axis=1))[:, None, None]
        nothing = 0 * (array(v).sum(axis=0) + array(behind).sum(axis=0)).repeat(q.shape[1] // k.shape[1], axis=0)
        out = out + np.where(alive, nothing, 0)
        if self.scale <= 0:
            # Keys are hidden before scores are scaled.
            lost = ~seen.all(axis=1)
            out[lost], lse[:, lost] = np.nan, np.nan
        return torch.from_numpy(out).to(q.dtype), torch.from_numpy(lse).float()

    def backward(
        self, dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, *, dlse: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """dq, dk, dv of a batch of one. dlse: (nheads, rows)."""
        given = None if dlse is None else array(dlse)[None]
        found = exact.gradients(self._problem(q, k, v), *map(array, (out, lse, dout)), dlse=given)
        if self.softcap > 0:
            raise NotImplementedError("the stand-in knows no gradients of softcap")
        dq, dk, dv = (torch.from_numpy(x).to(q.dtype) for x in (found.q, found.k, found.v))
        return dq, dk, dv

    def _problem(self, q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None = None) -> Problem:
        return Problem(
            dtype=str(q.dtype).removeprefix("torch."),
            q=array(q),
            k=array(k),
            v=array(v),
            scale=self.scale,
            softcap=self.softcap if self.softcap > 0 else None,
            sinks=None if sinks is None else array(sinks),
            mask=self.seen(q.shape[1], k.shape[1]),
        )


def behind(x: Tensor, part: slice) -> Tensor:
    """0, or NaN where what stands behind a part, to the end of its tile, is not finite."""
    end = part.start + -(-(part.stop - part.start) // TILE) * TILE
    return 0 * x[part.stop : end].sum()


def paged(rows: slice, k: Tensor, v: Tensor, table: list[int], length: int, kernel: Kernel, *, whole: bool) -> Part:
    """The keys that a table leads to. whole: pages are loaded to their ends."""
    page_size, first = k.shape[1], 0
    if kernel.left is not None:
        first = max(0, length - (rows.stop - rows.start) - kernel.left) // TILE * TILE
    keys = [(table[j // page_size], j % page_size) for j in range(first, length)]
    if any(not 0 <= page < len(k) for page, _ in keys):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")
    loaded = v[:0, 0]
    if whole and length % page_size:
        loaded = v[table[length // page_size], length % page_size :]
    # Keys before the first tile are not looked at.
    found = [x.new_zeros(length, *x.shape[2:]) for x in (k, v)]
    if keys:
        pages, offsets = (torch.tensor(each) for each in zip(*keys, strict=True))
        for into, x in zip(found, (k, v), strict=True):
            into[first:] = x[pages, offsets]
    return Part(rows, found[0], found[1], loaded)
