"""Checks of what no shape tells in a call of `mla_attention`: lengths, bounds, pages, and the slots of a list."""

from __future__ import annotations

import torch
from torch import Tensor

from xattn.errors import InvalidArgumentError
from xattn.ops.shared import checks, lengths
from xattn.ops.shared.batches import check_one_query, check_step
from xattn.plugin.storage import PagedBatch


def check_values(
    q: Tensor,
    kv_cache: Tensor,
    batch: PagedBatch,
    *,
    causal: bool | None = None,
    topk_indices: Tensor | None = None,
    check: bool = False,
    **others: object,
) -> None:
    """Check the sizes that a plan does not depend on, and the values, as `check_step` does; the slots of a list in each
    call, and in place of pages and lengths. causal: None where it is not known."""
    if not (checks.has_rank(q, 3) and checks.has_rank(kv_cache, 4)):
        return
    if topk_indices is None:
        band = None if causal is None else (None, 0 if causal else None)
        check_step(q, kv_cache, batch, band=band, align="bottom_right", check=check)
    elif checks.has_rank(topk_indices, 2):
        check_one_query(q, batch)
        if topk_indices.shape[0] != q.shape[0]:
            want = f"({q.shape[0]}, topk), a row for each of q"
            raise InvalidArgumentError("topk_indices", f"shape {tuple(topk_indices.shape)}", want)
        tokens = _check_tokens(q, batch, check)
        if tokens and checks.readable(topk_indices, torch.int32, on_device=check):
            _check_slots(topk_indices[:tokens], kv_cache.shape[0] * kv_cache.shape[1])


def _check_tokens(q: Tensor, batch: PagedBatch, check: bool) -> int:
    """How many rows of q are no padding, as far as it can be known."""
    starts = batch.cu_seqlens_q
    if not checks.readable(starts, torch.int32, on_device=check):
        return q.shape[0]
    assert starts is not None
    values: list[int] = starts.tolist()
    lengths.check_starts("cu_seqlens_q", values, q, "max_seqlen_q", None)
    return values[-1]


def _check_slots(slots: Tensor, capacity: int) -> None:
    lowest, highest = (int(each) for each in slots.aminmax())
    for slot in (lowest, highest):
        if not -1 <= slot < capacity:
            row, column = (slots == slot).nonzero()[0].tolist()
            want = f"-1, which is none, or 0 to {capacity - 1}, the last slot of the cache" if capacity else "-1"
            raise InvalidArgumentError("topk_indices", f"{slot} at ({row}, {column})", want)
    ordered = slots.sort(1).values
    twice = (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)
    if bool(twice.any()):
        row, column = twice.nonzero()[0].tolist()
        raise InvalidArgumentError("topk_indices", f"{int(ordered[row, column])} twice in row {row}", "each slot once")
