"""What the kernels compute of one sequence, where that is wrong as well."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from xattn_conformance.ops.attention.problem import Problem

from xattn_elsewhere import exact
from xattn_elsewhere.exact import Bools, array

# The keys of a tile: from 64 to 176, by head size and kind of call.
TILE = 128


@dataclass(frozen=True)
class Kernel:
    """left, right: of the window, counted from the bottom right, -1 is open."""

    scale: float
    left: int
    right: int
    softcap: float

    def seen(self, seqlen_q: int, seqlen_k: int) -> Bools:
        """(seqlen_q, seqlen_k)"""
        row, key = np.arange(seqlen_q)[:, None] + seqlen_k - seqlen_q, np.arange(seqlen_k)
        seen: Bools = np.ones((seqlen_q, seqlen_k), bool)
        if self.left >= 0:
            seen &= key >= row - self.left
        if self.right >= 0:
            seen &= key <= row + self.right
        return seen

    def forward(self, q: Tensor, k: Tensor, v: Tensor, behind: Tensor) -> tuple[Tensor, Tensor]:
        """out (rows, nheads, headdim_v) and lse (nheads, rows). behind: values that are multiplied by 0."""
        problem = self._problem(q[None], k[None], v[None])
        found = exact.forward(problem)
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
        self, dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """dq, dk, dv of a batch of one."""
        found = exact.gradients(self._problem(q, k, v), *map(array, (out, lse, dout)))
        if self.softcap > 0:
            raise NotImplementedError("the stand-in knows no gradients of softcap")
        dq, dk, dv = (torch.from_numpy(x).to(q.dtype) for x in (found.q, found.k, found.v))
        return dq, dk, dv

    def _problem(self, q: Tensor, k: Tensor, v: Tensor) -> Problem:
        return Problem(
            dtype=str(q.dtype).removeprefix("torch."),
            q=array(q),
            k=array(k),
            v=array(v),
            scale=self.scale,
            softcap=self.softcap if self.softcap > 0 else None,
            mask=self.seen(q.shape[1], k.shape[1]),
        )
