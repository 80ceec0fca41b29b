"""Packed sequences as FlashAttention-3 takes them, by operations on the device alone."""

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


def contained(k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """k and v of which nothing reaches another sequence. The kernel multiplies the values behind a sequence, up to the
    end of a tile, by 0: a NaN or an infinity among them would be in every row. Here it is in the key, which the kernel
    hides from all others, and no longer in the value."""
    largest = torch.linalg.vector_norm(v, torch.inf, -1, keepdim=True)
    # 0 or NaN.
    return k + (largest - largest), v.nan_to_num(0.0, 0.0, 0.0)
