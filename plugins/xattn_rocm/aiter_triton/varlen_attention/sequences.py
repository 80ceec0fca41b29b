"""Sequences in the order in which aiter's MHA is right, and the rows that see no key: by device operations alone."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def reordered(cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, left: int | None) -> tuple[Tensor, Tensor, Tensor]:
    """cu_seqlens for the kernel, with the last sequence first, and the order, (batch,).

    Where a sequence begins need not be where the one before ends: between any two stands one whose length is below 0,
    which the kernel leaves at once. It stays so because the sequences come from the last to the first. Those without
    queries or without keys are below 0 themselves and stand at the end: of a causal call the kernel would write 0 over
    the lse of their neighbours, and past its end (triton-varlen-lse-overrun). Keys before every window are left out:
    they may hold NaN.
    """
    starts_q, ends_q = cu_seqlens_q[:-1], cu_seqlens_q[1:]
    starts_k, ends_k = cu_seqlens_k[:-1], cu_seqlens_k[1:]
    dead = (starts_q == ends_q) | (starts_k == ends_k)
    if left is not None:
        starts_k = torch.maximum(starts_k, ends_k - (ends_q - starts_q) - left)
    below = torch.arange(-2, -2 * len(starts_q) - 1, -2, dtype=torch.int32, device=dead.device)
    queries = torch.stack((torch.where(dead, below + 1, starts_q), torch.where(dead, below, ends_q)))
    order = queries[1].argsort(descending=True)
    keys = torch.stack((starts_k, ends_k))
    return queries[:, order].t().flatten(), keys[:, order].t().flatten(), order


def fill_lse(lse: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, causal: bool, sinks: Tensor | None) -> None:
    """Write the lse of queries that see no key: -inf or the sink, and of rows of no sequence: -inf. aiter has 0 there.

    lse: (total_q, nheads). In place.
    """
    row = torch.arange(len(lse), dtype=torch.int32, device=lse.device)
    sequence = torch.searchsorted(cu_seqlens_q[1:].contiguous(), row, right=True)
    queries, keys = cu_seqlens_q.diff(), cu_seqlens_k.diff()
    seeing = torch.minimum(queries, keys) if causal else queries * (keys > 0)
    first = F.pad(cu_seqlens_q[1:] - seeing, (0, 1), value=torch.iinfo(torch.int32).max)
    dead = (row < first[sequence]).unsqueeze(1)
    if sinks is None:
        lse.masked_fill_(dead, -torch.inf)
        return
    lse.copy_(torch.where(dead, sinks.float(), lse))
    lse.masked_fill_((row >= cu_seqlens_q[-1]).unsqueeze(1), -torch.inf)
