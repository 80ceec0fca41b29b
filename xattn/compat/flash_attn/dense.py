"""Padded batches: flash_attn_func and its packed forms."""

from __future__ import annotations

from torch import Tensor

import xattn
from xattn.compat.conventions import Returned, check_probabilities, returned, softcap_of, window_of


def flash_attn_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> Returned:
    """`xattn.attention` by flash-attn's arguments.

    q: (batch, seqlen_q, nheads, headdim); k, v: (batch, seqlen_k, nheads_k, headdim). window_size: (left, right) keys,
    below 0 for open. softcap: 0 for off.

    Returns out as q, and with return_attn_probs (out, lse, an empty tensor), lse (batch, nheads, seqlen_q) float32.
    Raises as `xattn.attention`, and InvalidArgumentError for return_attn_probs with dropout.
    """
    if return_attn_probs:
        check_probabilities(return_attn_probs, dropout_p)
    found = xattn.attention(
        q, k, v, causal=causal, window=window_of(window_size), scale=softmax_scale, softcap=softcap_of(softcap),
        alibi_slopes=alibi_slopes, dropout_p=dropout_p, deterministic=deterministic, return_lse=return_attn_probs,
    )  # fmt: skip
    return returned(found)


def flash_attn_kvpacked_func(
    q: Tensor,
    kv: Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> Returned:
    """`flash_attn_func` with k and v in one tensor. kv: (batch, seqlen_k, 2, nheads_k, headdim)."""
    k, v = kv.unbind(2)
    return flash_attn_func(
        q, k, v, dropout_p, softmax_scale, causal, window_size, softcap, alibi_slopes, deterministic, return_attn_probs
    )


def flash_attn_qkvpacked_func(
    qkv: Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> Returned:
    """`flash_attn_func` with q, k and v in one tensor. qkv: (batch, seqlen, 3, nheads, headdim)."""
    q, k, v = qkv.unbind(2)
    return flash_attn_func(
        q, k, v, dropout_p, softmax_scale, causal, window_size, softcap, alibi_slopes, deterministic, return_attn_probs
    )
