"""Between padded batches and packed tokens: flash_attn.bert_padding."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def index_first_axis(input: Tensor, indices: Tensor) -> Tensor:
    """The rows `indices` (n,) of input (rows, ...): (n, ...)."""
    return input.index_select(0, indices)


def unpad_input(
    hidden_states: Tensor, attention_mask: Tensor, unused_mask: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor, int, Tensor]:
    """The valid tokens of a padded batch, one row after the other. Reads the mask, which stops a device's stream.

    hidden_states: (batch, seqlen, ...). attention_mask: (batch, seqlen), bool or int, 1 where a token is valid.
    unused_mask: the same where a token gets room and is not used.

    Returns the tokens (total, ...), their indices (total,) int64 among batch * seqlen, cu_seqlens (batch + 1,) int32,
    the longest row's length, and how many tokens of each row are valid, (batch,) int32.
    """
    kept = attention_mask if unused_mask is None else attention_mask + unused_mask
    lengths = kept.sum(dim=-1, dtype=torch.int32)
    used = attention_mask.sum(dim=-1, dtype=torch.int32)
    indices = kept.flatten().nonzero().flatten()
    cu_seqlens = F.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0))
    return index_first_axis(hidden_states.flatten(0, 1), indices), indices, cu_seqlens, int(lengths.max()), used


def pad_input(hidden_states: Tensor, indices: Tensor, batch: int, seqlen: int) -> Tensor:
    """`unpad_input` undone: (total, ...) tokens at their indices of a (batch, seqlen, ...) tensor, zeros elsewhere."""
    padded = hidden_states.new_zeros(batch * seqlen, *hidden_states.shape[1:])
    return padded.index_copy(0, indices, hidden_states).view(batch, seqlen, *hidden_states.shape[1:])
