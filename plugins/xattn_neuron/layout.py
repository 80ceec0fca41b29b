"""BSNH to AWS's layouts and back, with a count of what is copied.

A kernel reads and writes dense tensors whose heads come before the sequence. For tensors that lie so in memory, as
`x.transpose(1, 2)` of a (batch, nheads, seqlen, headdim) one does, and for a single head or token, that is a view;
otherwise it is one copy, which also cuts, pads and scales.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.compiler import is_dynamo_compiling


@dataclass
class Copies:
    """Of layouts, since the process began. bytes: written."""

    number: int = 0
    bytes: int = 0


copied = Copies()


def _count(made: Tensor) -> None:
    if not is_dynamo_compiling():
        copied.number += 1
        copied.bytes += made.numel() * made.element_size()


def dense(x: Tensor) -> Tensor:
    """x itself, or a contiguous copy."""
    if x.is_contiguous():
        return x
    x = x.contiguous()
    _count(x)
    return x


def heads_first(x: Tensor) -> Tensor:
    """(batch, seqlen, nheads, headdim) to (batch * nheads, seqlen, headdim)."""
    return dense(x.transpose(1, 2)).flatten(0, 1)


def padded(x: Tensor, length: int) -> Tensor:
    """(batch, seqlen, nheads, headdim) to (batch, nheads, length, headdim), zeros behind seqlen."""
    x = x.transpose(1, 2)
    if x.shape[2] == length:
        return dense(x)
    made = x.new_zeros(*x.shape[:2], length, x.shape[3])
    made[:, :, : x.shape[2]] = x
    _count(made)
    return made


def scaled(x: Tensor, length: int, scale: float) -> Tensor:
    """As padded, times scale, rounded once."""
    x = x.transpose(1, 2)
    if x.shape[2] != length:
        made = x.new_zeros(*x.shape[:2], length, x.shape[3])
        made[:, :, : x.shape[2]] = x * scale
    elif is_dynamo_compiling():
        # Functionalized, out= would take over the strides of x; the compiler fuses the two itself.
        made = (x * scale).contiguous()
    else:
        made = torch.mul(x, scale, out=torch.empty(x.shape, dtype=x.dtype, device=x.device))
    _count(made)
    return made


def dims_first(x: Tensor, length: int) -> Tensor:
    """(batch, seqlen, nheads, headdim) to (batch, nheads, headdim, length), zeros behind seqlen."""
    x = x.permute(0, 2, 3, 1)
    if x.shape[3] == length:
        return dense(x)
    made = x.new_zeros(*x.shape[:3], length)
    made[..., : x.shape[3]] = x
    _count(made)
    return made


def heads_last(x: Tensor, seqlen: int) -> Tensor:
    """The first seqlen rows of (batch, nheads, length, headdim) as BSNH."""
    if x.shape[2] != seqlen:
        x = x[:, :, :seqlen]
    return dense(x.transpose(1, 2))


def among(x: Tensor, seqlen: int, first: int, total: int) -> Tensor:
    """As heads_last, as rows from `first` on among `total`, of which the others are left unwritten."""
    x = x[:, :, :seqlen].transpose(1, 2)
    made = x.new_empty(x.shape[0], total, *x.shape[2:])
    made[:, first : first + seqlen] = x
    _count(made)
    return made


def from_dims_first(x: Tensor, seqlen: int) -> Tensor:
    """The first seqlen columns of (batch, nheads, headdim, length) as BSNH."""
    return dense(x[..., :seqlen].permute(0, 3, 1, 2))


def rows_of_tiles(tiles: Tensor, seqlen: int) -> Tensor:
    """(batch, nheads, 128, length // 128), where row i is at [i % 128, i // 128], to (batch, nheads, seqlen)."""
    rows = dense(tiles.transpose(2, 3)).flatten(2)
    return rows if rows.shape[2] == seqlen else dense(rows[..., :seqlen])


def lse_among(lse: Tensor, first: int, total: int) -> Tensor:
    """As among, of lse (batch, nheads, seqlen)."""
    made = lse.new_empty(*lse.shape[:2], total)
    made[..., first : first + lse.shape[2]] = lse
    _count(made)
    return made


def for_each_row(sinks: Tensor, batch: int) -> Tensor:
    """(nheads,) to (batch, nheads) float32."""
    return dense(sinks.float().expand(batch, -1))


def up(size: int, multiple: int) -> int:
    """The least multiple that is no less."""
    return -(-size // multiple) * multiple
