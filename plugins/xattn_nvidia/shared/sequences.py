"""Packed sequences for kernels that load whole tiles and write the rows of sequences alone, by operations on the device
alone."""

from __future__ import annotations

import torch
from torch import Tensor

# The padding is cut into sequences, of no fewer rows.
_LEAST = 128


def with_padding(
    cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, total_q: int, max_seqlen_q: int
) -> tuple[Tensor, Tensor, int]:
    """cu_seqlens with the rows behind the last sequence as sequences without keys, and the bound of all queries: the
    kernel writes the rows of sequences and no others. As many, some of them empty, as would fill all rows: where the
    padding begins is known on the device alone."""
    bound = max(_LEAST, max_seqlen_q)
    count = -(-total_q // bound)
    at = torch.arange(total_q - (count - 1) * bound, total_q + 1, bound, dtype=torch.int32, device=cu_seqlens_q.device)
    ends_q = torch.cat((cu_seqlens_q, torch.maximum(at, cu_seqlens_q[-1:])))
    return ends_q, torch.cat((cu_seqlens_k, cu_seqlens_k[-1:].expand(count))), bound


def behind(total: int, cu_seqlens: Tensor) -> Tensor:
    """(total,): the rows of no sequence."""
    return torch.arange(total, dtype=torch.int32, device=cu_seqlens.device) >= cu_seqlens[-1]


def dead(total_q: int, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, left: int | None, right: int | None) -> Tensor:
    """(total_q,): the rows that see no key, those of no sequence among them. left, right: from the bottom right."""
    row = torch.arange(total_q, dtype=torch.int32, device=cu_seqlens_q.device)
    last = len(cu_seqlens_q) - 2
    at = torch.searchsorted(cu_seqlens_q, row, right=True, out_int32=True).sub_(1).clamp_max_(last).long()
    keys = cu_seqlens_k[at + 1] - cu_seqlens_k[at]
    diagonal = row - cu_seqlens_q[at + 1] + keys
    none = (keys <= 0) | (row >= cu_seqlens_q[-1])
    if right is not None:
        none |= diagonal + right < 0
    if left is not None:
        none |= diagonal - left >= keys
    return none


def contained(k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """k and v of which nothing reaches another sequence. The kernel multiplies the values behind a sequence, up to the
    end of a tile, by 0: a NaN or an infinity among them would be in every row. Here it is in the key, which the kernel
    hides from all others, and no longer in the value."""
    largest = torch.linalg.vector_norm(v, torch.inf, -1, keepdim=True)
    # 0 or NaN.
    return k + (largest - largest), v.nan_to_num(0.0, 0.0, 0.0)


def contained_gradients(
    dout: Tensor, dlse: Tensor | None, q: Tensor, out: Tensor, lse: Tensor, dead: Tensor
) -> tuple[Tensor, Tensor | None, Tensor, Tensor, Tensor]:
    """dout, dlse, q, out, lse of which nothing reaches another sequence. The backward kernel multiplies the queries
    behind a sequence by weights of 0. Here their NaN and infinities are in lse, which it reads for a sequence's own
    rows, and of rows that see no key nowhere."""
    largest = [torch.linalg.vector_norm(x, torch.inf, -1).t().float() for x in (dout, q, out)]
    for each in largest if dlse is None else (*largest, dlse):
        lse = lse + (each - each)  # 0 or NaN
    lse = lse.where(lse.isfinite(), torch.nan).masked_fill(dead, torch.inf)
    dout, q, out = (x.nan_to_num(0.0, 0.0, 0.0).masked_fill(dead[:, None, None], 0) for x in (dout, q, out))
    if dlse is not None:
        dlse = dlse.nan_to_num(0.0, 0.0, 0.0).masked_fill(dead, 0)
    return dout, dlse, q, out, lse
