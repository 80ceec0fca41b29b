"""Packed sequences: flash_attn_varlen_func and its packed forms."""

from __future__ import annotations

from torch import Tensor

import xattn
from xattn import InvalidArgumentError
from xattn.compat.conventions import Returned, returned, softcap_of, window_of


def flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    block_table: Tensor | None = None,
) -> Returned:
    """`xattn.varlen_attention`, or with block_table `xattn.paged_attention`, by flash-attn's arguments.

    q: (total_q, nheads, headdim); k, v: (total_k, nheads_k, headdim), with block_table (num_blocks, block_size,
    nheads_k, headdim). cu_seqlens_q, cu_seqlens_k: (batch + 1,) int32. block_table: (batch, max_blocks) int32.

    Returns out as q, and with return_attn_probs (out, lse, an empty tensor), lse (nheads, total_q) float32.
    Raises as these ops, and InvalidArgumentError for dropout.
    """
    if dropout_p:
        raise InvalidArgumentError("dropout_p", str(dropout_p), "0: packed sequences have no dropout here")
    window, cap = window_of(window_size), softcap_of(softcap)
    if block_table is None:
        found = xattn.varlen_attention(
            q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q=max_seqlen_q, max_seqlen_k=max_seqlen_k, causal=causal,
            window=window, scale=softmax_scale, softcap=cap, alibi_slopes=alibi_slopes, deterministic=deterministic,
            return_lse=return_attn_probs,
        )  # fmt: skip
    else:
        found = xattn.paged_attention(
            q, k, v, block_table, cu_seqlens_k.diff(), cu_seqlens_q, max_seqlen_q=max_seqlen_q,
            max_seqlen_k=max_seqlen_k, causal=causal, window=window, scale=softmax_scale, softcap=cap,
            alibi_slopes=alibi_slopes, deterministic=deterministic, return_lse=return_attn_probs,
        )  # fmt: skip
    return returned(found)


def flash_attn_varlen_kvpacked_func(
    q: Tensor,
    kv: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> Returned:
    """`flash_attn_varlen_func` with k and v in one tensor. kv: (total_k, 2, nheads_k, headdim)."""
    k, v = kv.unbind(1)
    return flash_attn_varlen_func(
        q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p, softmax_scale, causal, window_size,
        softcap, alibi_slopes, deterministic, return_attn_probs,
    )  # fmt: skip


def flash_attn_varlen_qkvpacked_func(
    qkv: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> Returned:
    """`flash_attn_varlen_func` with q, k and v in one tensor. qkv: (total, 3, nheads, headdim)."""
    q, k, v = qkv.unbind(1)
    return flash_attn_varlen_func(
        q, k, v, cu_seqlens, cu_seqlens, max_seqlen, max_seqlen, dropout_p, softmax_scale, causal, window_size, softcap,
        alibi_slopes, deterministic, return_attn_probs,
    )  # fmt: skip
