"""aiter's `mha_batch_prefill_func`: CK over pages, by either of its two tables.

A tile has 128 keys. What it loads past the last key of a sequence it hides, and multiplies by 0; the page that it loads
it from stands in the table, or behind it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from xattn_elsewhere.aiter.standin.kernels import Run
from xattn_elsewhere.aiter.standin.routes import Given

_TILE = 128
# Of CK's generated kernels.
_PAGES = (1, 16, 1024)


class Prefill:
    """The method has aiter's signature."""

    def __init__(self, arch: str) -> None:
        self._arch = arch

    def mha_batch_prefill_func(
        self, q: Tensor, k: Tensor, v: Tensor, cu_seqlens_q: Tensor, kv_indptr: Tensor, kv_page_indices: Tensor,
        max_seqlen_q: int, max_seqlen_k: int, dropout_p: float = 0.0, softmax_scale: float | None = None,
        logits_soft_cap: float = 0.0, causal: bool = False, window_size: Sequence[int] = (-1, -1),
        alibi_slopes: Tensor | None = None, deterministic: bool = False, return_lse: bool = False,
        return_attn_probs: bool = False, out: Tensor | None = None, kv_last_page_lens: Tensor | None = None,
        block_table: Tensor | None = None, seqlen_k: Tensor | None = None, q_descale: Tensor | None = None,
        k_descale: Tensor | None = None, v_descale: Tensor | None = None, kv_block_descale: Tensor | None = None,
        sink_ptr: Tensor | None = None, sink_size: int = 0,
    ) -> Any:  # fmt: skip
        others = (out, q_descale, k_descale, v_descale, kv_block_descale)
        if dropout_p or return_attn_probs or sink_size or any(each is not None for each in others) or k.dim() == 5:
            raise NotImplementedError("the stand-in knows linear pages of 16 bits alone")
        k, v = (x.unsqueeze(1) if x.dim() == 3 else x for x in (k, v))
        _check(q, k, v, cu_seqlens_q, kv_indptr, kv_page_indices)
        if block_table is None and k.shape[1] > 1 and kv_last_page_lens is None:
            raise RuntimeError("if page_block_size > 1, must pass kv_last_page_lens to kernel")
        if k.shape[1] not in _PAGES:
            raise RuntimeError("invalid argument for batch_prefill: no matching kernel found")
        scale = q.shape[-1] ** -0.5 if softmax_scale is None else softmax_scale
        found = torch.full((*q.shape[:2], v.shape[3]), torch.nan, dtype=q.dtype)
        lse = torch.full((q.shape[1], len(q)), torch.nan)
        tables = _tables(k.shape[1], kv_indptr, kv_page_indices, kv_last_page_lens, block_table, seqlen_k)
        starts = cu_seqlens_q.tolist()
        for b, (pages, length) in enumerate(tables):
            rows = slice(*starts[b : b + 2])
            keys, values = (_loaded(x, pages, length) for x in (k, v))
            given = Given(
                arch=self._arch,
                q=q[None, rows],
                k=keys[None, :length],
                v=values[None, :length],
                seqlen_q=rows.stop - rows.start,
                seqlen_k=length,
                causal=causal,
                left=window_size[0],
                right=window_size[1],
                sink_tokens=0,
                alibi=None
                if alibi_slopes is None
                else alibi_slopes
                if alibi_slopes.dim() == 1
                else alibi_slopes[b : b + 1],
                bias=None,
                sink=None if sink_ptr is None else sink_ptr.float(),
                dropout_p=0.0,
                return_lse=return_lse,
                deterministic=deterministic,
                unpadded=(q.shape[-1], v.shape[-1]),
                softcap=logits_soft_cap,
                bound_k=max_seqlen_k,
            )
            part, part_lse, _ = Run(given, "ck", scale, group_mode=True).forward()
            past = (0 * values[length:]).sum(0).repeat_interleave(q.shape[1] // v.shape[2], 0)
            found[rows], lse[:, rows] = part[0] + past, part_lse[0]
        return (found, lse) if return_lse else found


def _check(q: Tensor, k: Tensor, v: Tensor, cu_seqlens_q: Tensor, kv_indptr: Tensor, indices: Tensor) -> None:
    """As the C++ entry's."""
    if q.dtype not in (torch.float16, torch.bfloat16):
        raise RuntimeError("FlashAttention only support fp16, bf16 and fp8_e4m3 data type")
    if k.dtype != q.dtype or v.dtype != q.dtype:
        raise RuntimeError("query and key must have the same dtype")
    for name, tensor in (("cu_seqlens_q", cu_seqlens_q), ("kv_indptr", kv_indptr), ("kv_page_indices", indices)):
        if tensor.dtype != torch.int32:
            raise RuntimeError(f"{name} must have dtype int32")
        if not tensor.is_contiguous():
            raise RuntimeError(f"{name} must be contiguous")
    if kv_indptr.shape != cu_seqlens_q.shape or len(cu_seqlens_q) < 2:
        raise RuntimeError("kv_indptr must have shape (batch_size + 1)")
    for name, x in (("K", k), ("V", v)):
        if x.shape[3] % 8 or x.shape[3] > 256:
            raise ValueError("Batch prefill requires head size divisible by vector size")
        blocks, page, heads, width = x.stride()
        fits = width == 1 and heads >= x.shape[3] and page >= x.shape[2] * heads and blocks >= x.shape[1] * page
        if not fits:
            raise RuntimeError(f"{name} page stride must be >= num_heads * head_stride")
        if any(stride % 8 for stride in (blocks, page, heads)):
            raise RuntimeError(f"{name} page stride must be a multiple of vector size")


def _tables(
    page: int, indptr: Tensor, indices: Tensor, last: Tensor | None, table: Tensor | None, lengths: Tensor | None
) -> list[tuple[Tensor, int]]:
    """Of each sequence the pages from its first on, to the end of the table and beyond, and how many keys it has."""
    if table is not None:
        if lengths is None:
            raise RuntimeError("block_table requires seqlen_k for per-batch lengths")
        if table.dtype != torch.int32 or lengths.dtype != torch.int32 or table.stride(-1) != 1:
            raise RuntimeError("block_table must be int32")
        return [(table[b:].flatten(), int(lengths[b])) for b in range(len(lengths))]
    found = []
    for b in range(len(indptr) - 1):
        pages = int(indptr[b + 1] - indptr[b])
        tail = page if last is None or page == 1 else int(last[b])
        found.append((indices[int(indptr[b]) :], (pages - 1) * page + tail if pages else 0))
    return found


def _loaded(cache: Tensor, pages: Tensor, length: int) -> Tensor:
    """(keys, heads, width): to the end of the last tile. A page that is not there is a fault of the GPU's."""
    page = cache.shape[1]
    keys = -(-length // _TILE) * _TILE
    used = pages[: -(-keys // page)].long()
    if len(used) * page < keys or bool(((used < 0) | (used >= len(cache))).any()):
        raise RuntimeError("Memory access fault by GPU node-1")
    return cache[used].flatten(0, 1)[:keys]
