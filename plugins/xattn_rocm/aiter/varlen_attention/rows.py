"""Rows that no kernel writes, or writes as it likes: by device operations alone.

Rows behind the last sequence are nobody's, and aiter's kernels differ in what they make of a query that sees no key.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function


def sequence_of(cu_seqlens: Tensor, total: int) -> tuple[Tensor, Tensor]:
    """Of each row its sequence, the last one of nobody's rows, and whether it is nobody's: (total,)."""
    row = torch.arange(total, dtype=torch.int32, device=cu_seqlens.device)
    found = torch.searchsorted(cu_seqlens[1:].contiguous(), row, right=True)
    return found.clamp_max(len(cu_seqlens) - 2), row >= cu_seqlens[-1]


def dead_rows(starts_q: Tensor, keys: Tensor, total_q: int, right: int | None) -> tuple[Tensor, Tensor]:
    """Which rows see no key, nobody's among them, and which are nobody's: (total_q,). keys: (batch,), how many each
    sequence has. right: of the band, from the bottom right."""
    sequence, nobodys = sequence_of(starts_q, total_q)
    queries = starts_q.diff()
    none = torch.where(keys > 0, 0, queries)
    if right is not None:
        none = torch.maximum(none, queries - keys - right)
    row = torch.arange(total_q, dtype=torch.int32, device=starts_q.device)
    return nobodys | (row < (starts_q[:-1] + none)[sequence]), nobodys


def fill(
    out: Tensor, lse: Tensor | None, dead: Tensor, nobodys: Tensor, sinks: Tensor | None, in_place: bool
) -> tuple[Tensor, Tensor | None]:
    """out (total_q, nheads, headdim_v) with 0 in dead rows, lse (nheads, total_q) with -inf, or a query's sink.

    in_place: not in training, where aiter has saved out."""
    mask = dead[:, None, None]
    out = out.masked_fill_(mask, 0.0) if in_place else out.masked_fill(mask, 0.0)
    if lse is None:
        return out, None
    low = lse.new_full((), -torch.inf) if sinks is None else sinks.float().unsqueeze(1)
    return out, torch.where(nobodys, -torch.inf, torch.where(dead, low, lse))


class Unseen(Function):
    """(x, rows) -> x, whose gradient is 0 in those rows: aiter leaves them as they were in new memory."""

    @staticmethod
    def forward(x: Tensor, rows: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (rows,) = ctx.saved_tensors
        return grad.masked_fill(rows[:, None, None], 0.0), None
