"""What the two kernels named flash_fwd have in common, which are one another's copies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from xattn_conformance.ops.attention.problem import Problem

from xattn_elsewhere import exact
from xattn_elsewhere.exact import Bools, array, rounded
from xattn_elsewhere.nki.standin.kernel import PMAX, Grid, dtype_name, tiled, unwritten

F_MAX = 512


@dataclass(frozen=True)
class Flash:
    """low: the score of a hidden key, and what all running numbers begin with. causal, window: the masks within a tile;
    a window of 0 or less is none. tile: keys of a large tile. bias: (seqlen_q, seqlen_k).
    kernel: the dtype of operands. kept: of everything else.
    """

    scale: float
    low: float
    causal: bool
    window: int
    tile: int
    kernel: torch.dtype
    kept: torch.dtype
    bias: Tensor | None = None

    def run(self, grid: Grid, q: Tensor, k: Tensor, v: Tensor, lse_dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """out (batch, nheads, seqlen_q, headdim) and lse (batch, nheads, 128, tiles), unwritten but for whole tiles of
        queries and the heads of the grid.

        q, k (batch, heads, headdim, seqlen), v (batch, nheads_k, seqlen_k, headdim)."""
        batch, nheads, nheads_k = programs(grid, q, k)
        out = unwritten((*q.shape[:2], q.shape[3], q.shape[2]), q.dtype)
        lse = unwritten((*q.shape[:2], PMAX, q.shape[3] // PMAX), lse_dtype)
        rows = lse.shape[3] * PMAX
        computed, seen, broken = self._masks(rows, k.shape[3])
        problem = Problem(
            dtype=dtype_name(self.kernel),
            q=array(q[:batch, :nheads, :, :rows].to(self.kernel)).transpose(0, 3, 1, 2),
            k=array(k[:batch, :nheads_k].to(self.kernel)).transpose(0, 3, 1, 2),
            v=array(v[:batch, :nheads_k].to(self.kernel)).transpose(0, 2, 1, 3),
            scale=self.scale,
            sinks=np.full(nheads, self.low),
            bias=None if self.bias is None else array(self.bias[:rows].to(self.kernel)),
            mask=computed & seen,
        )
        found = exact.filled(exact.forward(problem), problem, computed & ~seen, self.low)
        # out is divided by exp(lse - top), which is as good as what is kept of lse.
        kept = rounded(found.lse, self.kept)
        with np.errstate(invalid="ignore", over="ignore"):
            values = found.out * (found.total * np.exp(found.top - kept)).swapaxes(1, 2)[..., None]
        values[:, broken], kept[..., broken] = np.nan, np.nan
        out[:batch, :nheads, :rows] = torch.from_numpy(values.swapaxes(1, 2)).to(self.kernel).to(out.dtype)
        lse[:batch, :nheads] = tiled(kept).to(lse_dtype)
        return out, lse

    def _masks(self, seqlen_q: int, seqlen_k: int) -> tuple[Bools, Bools, Bools]:
        """What is computed, and what is not hidden there, (seqlen_q, seqlen_k); and rows that come out as NaN."""
        row, key = np.arange(seqlen_q)[:, None], np.arange(seqlen_k)
        first, start = row // PMAX * PMAX, key // self.tile * self.tile
        computed, seen = np.ones((2, seqlen_q, seqlen_k), bool)
        broken, near = np.zeros(seqlen_q, bool), key > row - self.window
        if self.window > 0:
            computed &= (first >= start) & (start + self.tile - 1 > first - self.window)
        elif self.causal and self.window < 0:
            computed &= first >= start
        if self.causal:
            seen &= key <= row
        if self.causal and self.window > 0 and self.bias is None:
            seen &= near
        elif self.causal and self.window > 0:
            # The window is laid over scores of which only the tiles on the diagonal exist, and there it is not.
            left = (key // F_MAX + 1) * F_MAX <= first
            seen &= ~left
            broken |= (computed & left & near).any(axis=1)
        return computed, seen, broken


def programs(grid: Grid, q: Tensor, k: Tensor) -> tuple[int, int, int]:
    """(batch, nheads, nheads_k) that a grid [batch, nheads_k] has programs for."""
    assert len(grid) == 2, f"Expect spmd grid with 2 dimensions, got {len(grid)} instead!"
    batch, nheads, nheads_k = q.shape[0], q.shape[1], k.shape[1]
    if grid[0] > batch or grid[1] > nheads_k:
        raise IndexError(f"a grid of {list(grid)} for a batch of {batch} and {nheads_k} heads of keys")
    return grid[0], grid[1] * (nheads // nheads_k), grid[1]


def check(q: Tensor, k: Tensor, v: Tensor, config: Any) -> None:
    batch, _, headdim, _ = q.shape
    nheads_k, seqlen_k = k.shape[1], k.shape[3]
    width_v = (headdim, seqlen_k) if config.should_transpose_v else (seqlen_k, headdim)
    for name, x, width in (("V", v, width_v), ("K", k, (headdim, seqlen_k))):
        wanted = (batch, nheads_k, *width)
        assert tuple(x.shape) == wanted, f"Expect shape of {name} to be {wanted} but got {tuple(x.shape)}"
    assert headdim <= 128, f" we do not support head_dim > 128, got head dim {headdim}"


def check_tiles(k: Tensor, config: Any) -> None:
    tile, seqlen_k = config.seq_tile_size, k.shape[3]
    assert tile >= F_MAX, f" seq tile_size {tile} cannot be less than {F_MAX}"
    assert seqlen_k % tile == 0, f"Need seqlen_k to be divisible by {tile} but got {seqlen_k}"
