"""What the two kernels named flash_fwd have in common, which are one another's copies."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from xattn_elsewhere.nki.standin.kernel import PMAX, Grid, rounded

F_MAX = 512

# (i, j) -> whether the tile of 128 queries is computed against the large tile of keys.
Wanted = Callable[[int, int], bool]


@dataclass(frozen=True)
class Head:
    """What one head is computed by. low: what hides a score, and what all running numbers begin with.

    causal, window: the masks within a tile; a window of 0 or less is none. bias: (seqlen_q, seqlen_k).
    kernel: the dtype of operands. kept: of everything else.
    """

    scale: float
    low: float
    causal: bool
    window: int
    tile: int
    kernel: torch.dtype
    kept: torch.dtype
    wanted: Wanted
    bias: Tensor | None = None

    def forward(self, q: Tensor, k: Tensor, v: Tensor, out: Tensor) -> Tensor:
        """Writes out (seqlen_q, headdim), but for the rows past the last whole tile; returns lse (128, tiles).

        q, k (headdim, seqlen), v (seqlen_k, headdim)."""
        q = rounded(rounded(q, self.kernel) * self.scale, self.kernel)
        k, v = rounded(k, self.kernel), rounded(v, self.kernel)
        tiles = q.shape[1] // PMAX
        lse = torch.full((PMAX, tiles), self.low)
        for i in range(tiles):
            rows = slice(i * PMAX, (i + 1) * PMAX)
            found = self._tile(i, q[:, rows], k, v)
            total, top, lse[:, i] = found
            out[rows] = rounded(total * torch.exp(top - lse[:, i])[:, None], self.kernel).to(out.dtype)
        return lse

    def _tile(self, i: int, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        total = torch.zeros(PMAX, v.shape[1])
        top = lse = rounded(torch.full((PMAX,), self.low), self.kept)
        for j in range(k.shape[1] // self.tile):
            if not self.wanted(i, j):
                continue
            keys = slice(j * self.tile, (j + 1) * self.tile)
            scores = rounded(self._scores(i, keys, q.T @ k[:, keys]), self.kept)
            before, top = top, torch.maximum(top, scores.amax(1))
            weights = torch.exp(scores - top[:, None])
            total = rounded(total * torch.exp(before - top)[:, None], self.kept)
            total = rounded(total + rounded(weights, self.kernel) @ v[keys], self.kept)
            added = rounded(weights.sum(1), self.kept)
            lse = rounded(top + torch.log(torch.exp(lse - top) + added), self.kept)
        return total, top, lse

    def _scores(self, i: int, keys: slice, raw: Tensor) -> Tensor:
        row = torch.arange(i * PMAX, (i + 1) * PMAX)[:, None]
        key = torch.arange(keys.start, keys.stop)
        biased = raw
        if self.bias is not None:
            biased = raw + rounded(self.bias[row[:, 0], keys], self.kernel)
        if not self.causal:
            return biased
        behind = key <= row
        if self.bias is None or self.window <= 0:
            seen = behind & (key > row - self.window) if self.window > 0 else behind
            return torch.where(seen, biased, self.low)
        # The window is laid over scores of which only the tiles on the diagonal exist, and there it is not.
        left = (key // F_MAX + 1) * F_MAX <= row[0]
        windowed = torch.where(key > row - self.window, math.nan, self.low)
        return torch.where(left, windowed, torch.where(behind, biased, self.low))


def heads(grid: Grid, q: Tensor, k: Tensor) -> list[tuple[int, int, int]]:
    """(batch row, query head, key-value head) of each program of a grid [batch, nheads_k]."""
    assert len(grid) == 2, f"Expect spmd grid with 2 dimensions, got {len(grid)} instead!"
    batch, nheads, nheads_k = q.shape[0], q.shape[1], k.shape[1]
    if grid[0] > batch or grid[1] > nheads_k:
        raise IndexError(f"a grid of {list(grid)} for a batch of {batch} and {nheads_k} heads of keys")
    group = nheads // nheads_k
    return [(b, h * group + i, h) for b in range(grid[0]) for h in range(grid[1]) for i in range(group)]


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
