"""aiter's attention functions, on any backend of xattn:

    from xattn.compat.aiter import flash_attn_func

in place of `from aiter import flash_attn_func`. The call then goes through `xattn.attention`: to the fastest kernel
that serves it exactly as asked, or to an error that says why there is none.

The other four are in aiter's documentation and not in aiter
(https://github.com/ROCm/aiter/blob/main/docs/api/attention.rst). Here they mean what it says, as far as that is
a call: `grouped_query_attention`, `multi_query_attention`, `variable_length_attention`, `flash_attn_with_kvcache`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import xattn
from xattn import AttentionOutput, InvalidArgumentError
from xattn.compat.conventions import window_of

__all__ = [
    "flash_attn_func",
    "flash_attn_with_kvcache",
    "grouped_query_attention",
    "multi_query_attention",
    "variable_length_attention",
]


def flash_attn_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, ...] = (-1, -1, 0),
    bias: Tensor | None = None,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = True,
    return_lse: bool = False,
    return_attn_probs: bool = False,
    how_v3_bf16_cvt: int = 1,
    cu_seqlens_q: Tensor | None = None,
    cu_seqlens_kv: Tensor | None = None,
    sink_ptr: Tensor | None = None,
    num_splits: int = 0,
) -> Tensor | tuple[Tensor, Tensor]:
    """q: (batch, seqlen_q, nheads, headdim), k and v likewise with their own sizes; out as q with v's headdim, and
    with return_lse (out, lse), lse (batch, nheads, seqlen_q) float32.

    window_size: (left, right) or (left, right, 0), -1 for open. sink_ptr: (nheads,) logits, xattn's `sinks`.
    how_v3_bf16_cvt and num_splits tell aiter how to compute, not what: they are left to xattn. deterministic is True
    by default, as aiter's: with gradients False is faster.

    Raises InvalidArgumentError for what xattn has no word for (leading sink tokens, return_attn_probs, cu_seqlens), and
    what `xattn.attention` raises.
    """
    left, right, *tokens = window_size
    for name, got, legal in (
        ("window_size", window_size, "no sink tokens: a third number of 0" if any(tokens) else ""),
        ("return_attn_probs", return_attn_probs, "False" if return_attn_probs else ""),
        ("cu_seqlens_q", "a tensor", "None" if cu_seqlens_q is not None else ""),
        ("cu_seqlens_kv", "a tensor", "None" if cu_seqlens_kv is not None else ""),
    ):
        if legal:
            raise InvalidArgumentError(name, str(got), legal)
    options: dict[str, Any] = {
        "causal": causal,
        "window": window_of((left, right)),
        "scale": softmax_scale,
        "dropout_p": dropout_p,
        "deterministic": deterministic,
        "bias": bias,
        "alibi_slopes": alibi_slopes,
        "sinks": sink_ptr,
        "return_lse": return_lse,
    }
    returned: Tensor | AttentionOutput = xattn.attention(q, k, v, **options)
    return (returned.out, returned.lse) if isinstance(returned, AttentionOutput) else returned


def grouped_query_attention(query: Tensor, key: Tensor, value: Tensor, num_groups: int, causal: bool = False) -> Tensor:
    """`xattn.attention`, with the number of query heads for each key-value head said once more, and checked.

    query: (batch, seqlen_q, nheads, headdim); key, value: (batch, seqlen_k, nheads / num_groups, headdim).
    Raises InvalidArgumentError where the heads are not num_groups for one, and as `xattn.attention`.
    """
    if query.shape[2] != key.shape[2] * num_groups:
        got = f"{num_groups}, with {query.shape[2]} query heads and {key.shape[2]} key heads"
        raise InvalidArgumentError("num_groups", got, "query heads for one key head")
    return xattn.attention(query, key, value, causal=causal)


def multi_query_attention(query: Tensor, key: Tensor, value: Tensor, causal: bool = False) -> Tensor:
    """`xattn.attention` with one key-value head for all, which is checked.

    query: (batch, seqlen_q, nheads, headdim); key, value: (batch, seqlen_k, 1, headdim).
    Raises InvalidArgumentError for more key heads, and as `xattn.attention`.
    """
    if key.shape[2] != 1:
        raise InvalidArgumentError("key", f"{key.shape[2]} heads", "1: grouped_query_attention takes more")
    return xattn.attention(query, key, value, causal=causal)


def variable_length_attention(
    query: Tensor, key: Tensor, value: Tensor, seq_lengths: Tensor, max_seq_len: int
) -> Tensor:
    """`xattn.attention` of padded rows: seq_lengths are the valid keys of each.

    query: (batch, seqlen_q, nheads, headdim); key, value: (batch, seqlen_k, nheads_k, headdim), of which keys past
    max_seq_len are left out. seq_lengths: (batch,) int32 or int64, at most max_seq_len. Every query gets an out, those
    past a row's length too. Raises InvalidArgumentError for a max_seq_len above seqlen_k, and as `xattn.attention`.
    """
    if not 0 < max_seq_len <= key.shape[1]:
        raise InvalidArgumentError("max_seq_len", str(max_seq_len), f"1 to {key.shape[1]}, the keys that there are")
    return xattn.attention(query, key[:, :max_seq_len], value[:, :max_seq_len], seqlens_k=seq_lengths)


def flash_attn_with_kvcache(
    query: Tensor,
    kv_cache: Tensor | tuple[Tensor, Tensor],
    page_table: Tensor,
    block_size: int,
    causal: bool = True,
    seq_lengths: Tensor | None = None,
) -> Tensor:
    """`xattn.paged_attention` over pages whose heads come first.

    query: (batch, seqlen_q, nheads, headdim). kv_cache: keys and values, each (num_blocks, nheads_k, block_size,
    headdim): a pair, or one tensor of both, (2, num_blocks, ...). page_table: (batch, max_blocks) int32. seq_lengths:
    (batch,) int32, the keys of each row.

    aiter's documentation has one tensor (num_blocks, nheads_k, block_size, headdim) for keys and values, and no
    lengths: such a call says neither which half is which nor where a row ends, and raises InvalidArgumentError, as does
    another block_size than the pages'. Raises as `xattn.paged_attention`.
    """
    lacks = "one tensor of 4 dimensions" if isinstance(kv_cache, Tensor) and kv_cache.dim() == 4 else ""
    lacks = lacks or ("no seq_lengths" if seq_lengths is None else "")
    if lacks:
        hint = (
            "Call xattn.paged_attention(q, k_cache, v_cache, block_table, seqlens_k, cu_seqlens_q), q packed and the "
            "pages (num_blocks, block_size, nheads_k, headdim): x.transpose(1, 2)."
        )
        raise InvalidArgumentError("kv_cache", lacks, "keys, values, and the lengths of the rows", hint)
    k_cache, v_cache = (pages.transpose(1, 2) for pages in kv_cache)
    if k_cache.shape[1] != block_size:
        raise InvalidArgumentError("block_size", str(block_size), f"{k_cache.shape[1]}, the size of a page")
    batch, seqlen_q = query.shape[:2]
    cu_seqlens_q = torch.arange(batch + 1, dtype=torch.int32, device=query.device) * seqlen_q
    out = xattn.paged_attention(
        query.flatten(0, 1), k_cache, v_cache, page_table, seq_lengths, cu_seqlens_q, max_seqlen_q=seqlen_q,
        max_seqlen_k=page_table.shape[1] * block_size, causal=causal,
    )  # fmt: skip
    return out.view(batch, seqlen_q, *out.shape[1:])
