"""One call as the engines see it: tensors and plain numbers, one batch row or many."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from xattn import InvalidArgumentError
from xattn.plugin.geometry import Geometry
from xattn_sdpa.attention.tiling import Tile, tiles


@dataclass(frozen=True)
class Problem:
    """Tensors are BSNH. sinks and alibi_slopes are (nheads,) or (batch, nheads); bias and mask have 4 dimensions, each
    whole or 1; left, right and offset are as in `Geometry`."""

    q: Tensor
    k: Tensor
    v: Tensor
    sinks: Tensor | None
    alibi_slopes: Tensor | None
    bias: Tensor | None
    mask: Tensor | None
    left: int | None
    right: int | None
    offset: int
    scale: float
    softcap: float | None

    @property
    def geometry(self) -> Geometry:
        return Geometry(self.q.shape[1], self.k.shape[1], self.left, self.right, self.offset)

    @property
    def group(self) -> int:
        return self.q.shape[2] // self.k.shape[2]

    @property
    def wide(self) -> torch.dtype:
        """The dtype of scores, sums and lse."""
        return torch.float64 if self.q.dtype == torch.float64 else torch.float32

    @property
    def masked(self) -> bool:
        return self.mask is not None or self.bias is not None

    def sink_rows(self) -> Tensor | None:
        """sinks as (batch or 1, nheads, 1), wide."""
        return None if self.sinks is None else self.sinks.to(self.wide).view(-1, self.q.shape[2], 1)

    def slope_rows(self) -> Tensor | None:
        """alibi_slopes as (batch or 1, nheads, 1, 1), wide."""
        return None if self.alibi_slopes is None else self.alibi_slopes.to(self.wide).view(-1, self.q.shape[2], 1, 1)

    def places(self, tile: Tile) -> tuple[Tensor, Tensor]:
        """i + offset as a column and j as a row, over a tile."""
        i = torch.arange(tile.row, tile.row_end, device=self.q.device) + self.offset
        return i.unsqueeze(1), torch.arange(tile.key, tile.key_end, device=self.q.device)

    def alibi(self, tile: Tile) -> Tensor | None:
        """-slope * abs(i + offset - j): (batch or 1, nheads, rows, keys), wide."""
        slopes = self.slope_rows()
        if slopes is None:
            return None
        i, j = self.places(tile)
        return -slopes * (i - j).abs()

    def hidden(self, tile: Tile) -> Tensor | None:
        """True where a row does not see a key: (batch or 1, nheads or 1, rows or 1, keys or 1); None if it sees all."""
        hidden: Tensor | None = None
        if tile.kind != "full":
            i, j = self.places(tile)
            hidden = torch.zeros((), dtype=torch.bool, device=self.q.device)
            if self.left is not None:
                hidden = hidden | (j < i - self.left)
            if self.right is not None:
                hidden = hidden | (j > i + self.right)
            hidden = hidden[None, None]
        if self.mask is not None:
            off = ~cut(self.mask, tile)
            hidden = off if hidden is None else hidden | off
        if self.bias is not None:
            off = cut(self.bias, tile) == -torch.inf
            hidden = off if hidden is None else hidden | off
        return hidden

    def without_unseen(self) -> Problem:
        """The problem with zeros for the keys and values that no query sees: 0 * NaN would reach the output.

        Only masks and biases hide a key inside a tile from all its rows; `tiles` leaves out every other unseen key.
        """
        if not self.masked:
            return self
        batch, _, nheads, _ = self.q.shape
        seqlen_k, nheads_k = self.k.shape[1:3]
        seen = torch.zeros(batch, nheads, seqlen_k, dtype=torch.bool, device=self.q.device)
        for tile in tiles(self.geometry, 512, False):
            hidden = self.hidden(tile)
            assert hidden is not None
            seen[:, :, tile.key : tile.key_end] |= ~hidden.all(2)
        seen = seen.unflatten(1, (nheads_k, self.group)).any(2).transpose(1, 2).unsqueeze(3)
        return replace(self, k=torch.where(seen, self.k, 0.0), v=torch.where(seen, self.v, 0.0))

    def row(self, b: int, seqlen_k: int, offset: int) -> Problem:
        """Batch row b alone, with its first seqlen_k keys."""

        def pick(tensor: Tensor | None) -> Tensor | None:
            return tensor if tensor is None or tensor.shape[0] == 1 else tensor[b : b + 1]

        def keys(tensor: Tensor | None) -> Tensor | None:
            return tensor if tensor is None or tensor.shape[3] == 1 else tensor[..., :seqlen_k]

        return replace(
            self,
            q=self.q[b : b + 1],
            k=self.k[b : b + 1, :seqlen_k],
            v=self.v[b : b + 1, :seqlen_k],
            sinks=pick(self.sinks) if self.sinks is not None and self.sinks.dim() == 2 else self.sinks,
            alibi_slopes=pick(self.alibi_slopes)
            if self.alibi_slopes is not None and self.alibi_slopes.dim() == 2
            else self.alibi_slopes,
            bias=keys(pick(self.bias)),
            mask=keys(pick(self.mask)),
            offset=offset,
        )


def empty_result(problem: Problem) -> tuple[Tensor, Tensor]:
    """Room for out and lse."""
    batch, seqlen_q, nheads, _ = problem.q.shape
    out = problem.q.new_empty(batch, seqlen_q, nheads, problem.v.shape[3])
    return out, problem.q.new_empty(batch, nheads, seqlen_q, dtype=problem.wide)


def zero_result(problem: Problem) -> tuple[Tensor, Tensor]:
    """out and lse of queries that see no key."""
    out, lse = empty_result(problem)
    return out.zero_(), lse.fill_(-torch.inf)


def cut(tensor: Tensor, tile: Tile) -> Tensor:
    """The part of a (batch or 1, nheads or 1, seqlen_q or 1, seqlen_k or 1) tensor that a tile reads."""
    if tensor.shape[2] != 1:
        tensor = tensor[:, :, tile.row : tile.row_end]
    if tensor.shape[3] != 1:
        tensor = tensor[..., tile.key : tile.key_end]
    return tensor


def rows(problem: Problem, seqlens_k: Tensor | None, offset: int | None) -> Iterator[tuple[slice, Problem]]:
    """The problem in parts that share a key length: all of it, or batch row by batch row with seqlens_k.

    offset: of every row; None is "bottom_right", which counts from the end of the row.
    """
    if seqlens_k is None:
        yield slice(None), problem
        return
    seqlen_q, seqlen_k = problem.q.shape[1], problem.k.shape[1]
    for b, length in enumerate(seqlens_k.tolist()):
        if not 0 <= length <= seqlen_k:
            raise InvalidArgumentError("seqlens_k", str(length), f"0 to seqlen_k, which is {seqlen_k}")
        yield slice(b, b + 1), problem.row(b, length, length - seqlen_q if offset is None else offset)
