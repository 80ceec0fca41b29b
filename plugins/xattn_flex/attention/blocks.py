"""The blocks of queries and keys that a band touches, worked out from sizes: torch's own way looks at every score."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# The rows and keys of a block.
SIZE = 128
# A side that is open, so that sums with it stay within 32 bits.
OPEN = 2**30


def edges(low: int, high: int, device: torch.device) -> Tensor:
    """(2,) int32 of a band: query i sees the keys from i + low to i + high. Written on the device, without a sync."""
    made = torch.empty(2, dtype=torch.int32, device=device)
    made[0].fill_(low)
    made[1].fill_(high)
    return made


def of_band(seqlen_q: int, seqlen_k: int, low: int, high: int, device: torch.device, mask_mod: Any) -> Any:
    """The BlockMask of a band. low <= high."""
    from torch.nn.attention.flex_attention import BlockMask

    first_q, last_q, whole_q = _ends(seqlen_q, device)
    first_k, last_k, whole_k = _ends(seqlen_k, device)
    touched = (last_k >= (first_q + low)[:, None]) & (first_k <= (last_q + high)[:, None])
    full = (first_k >= (last_q + low)[:, None]) & (last_k <= (first_q + high)[:, None])
    full &= touched & whole_q[:, None] & whole_k
    return BlockMask.from_kv_blocks(
        *_listed(touched & ~full), *_listed(full), BLOCK_SIZE=SIZE, mask_mod=mask_mod, seq_lengths=(seqlen_q, seqlen_k)
    )


def _ends(seqlen: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """The first and the last row of each block, and whether it is whole."""
    first = torch.arange(0, seqlen, SIZE, dtype=torch.int32, device=device)
    last = first + (SIZE - 1)
    return first, last.clamp_max(seqlen - 1), last < seqlen


def _listed(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """How many blocks each row of them has, and which."""
    order = blocks.to(torch.int32).argsort(dim=-1, descending=True, stable=True).to(torch.int32)
    return blocks.sum(-1, dtype=torch.int32)[None, None], order[None, None]
