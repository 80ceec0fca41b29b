"""FlashAttention-4's two functions: their checks, and which sequence a kernel is run over."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from xattn_elsewhere.nvidia.flash import TILE, Kernel, Part, behind, paged


def _flash_attn_fwd(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    cu_seqlens_q: Tensor | None = None,
    cu_seqlens_k: Tensor | None = None,
    seqused_k: Tensor | None = None,
    max_seqlen_q: int | None = None,
    max_seqlen_k: int | None = None,
    page_table: Tensor | None = None,
    softmax_scale: float | None = None,
    causal: bool = False,
    softcap: float | None = None,
    window_size_left: int | None = None,
    window_size_right: int | None = None,
    learnable_sink: Tensor | None = None,
    num_splits: int = 1,
    return_lse: bool = False,
) -> tuple[Tensor, Tensor | None, None, None, None]:
    assert num_splits == 1, "SplitKV is not supported on SM90"
    _check(q, k, v, learnable_sink, cu_seqlens_q, cu_seqlens_k, seqused_k)
    kernel = _kernel(softmax_scale, causal, softcap, window_size_left, window_size_right)
    flat = q if cu_seqlens_q is not None else q.flatten(0, 1)
    out = flat.new_full((*flat.shape[:2], v.shape[-1]), torch.nan)
    lse = torch.full((flat.shape[1], len(flat)), torch.nan)
    if 0 in (len(flat), k.shape[-3]):
        out.zero_()
        lse.fill_(-torch.inf) if learnable_sink is None else lse.copy_(learnable_sink[:, None])
    else:
        for part in _parts(q, k, v, cu_seqlens_q, cu_seqlens_k, seqused_k, page_table, kernel):
            given = flat[part.rows], part.k, part.v, part.behind
            out[part.rows], lse[:, part.rows] = kernel.forward(*given, learnable_sink)
            if learnable_sink is not None:
                alone = kernel.forward(*given)[1]
                # exp(sink - the largest score)
                lse[:, part.rows][(learnable_sink[:, None] - alone > 88) & (alone != -torch.inf)] = torch.inf
    if cu_seqlens_q is None:
        out, lse = out.unflatten(0, q.shape[:2]), lse.unflatten(1, q.shape[:2]).transpose(0, 1).contiguous()
    return out, lse if return_lse else None, None, None, None


def _flash_attn_bwd(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    dout: Tensor,
    lse: Tensor,
    softmax_scale: float | None = None,
    causal: bool = False,
    softcap: float = 0.0,
    window_size_left: int | None = None,
    window_size_right: int | None = None,
    *,
    cu_seqlens_q: Tensor | None = None,
    cu_seqlens_k: Tensor | None = None,
    max_seqlen_q: int | None = None,
    max_seqlen_k: int | None = None,
    deterministic: bool = False,
    dq: Tensor,
    dk: Tensor,
    dv: Tensor,
    dlse: Tensor | None = None,
    learnable_sink: Tensor | None = None,
) -> tuple[Tensor, ...]:
    _check(q, k, v, learnable_sink, cu_seqlens_q, cu_seqlens_k)
    assert lse.dtype == torch.float32
    assert q.shape[-2] == k.shape[-2] or q.shape[-1] == v.shape[-1], "GQA backward requires head_dim == head_dim_v"
    assert lse.shape == (*q.shape[:-3], q.shape[-2], q.shape[-3])
    kernel = _kernel(softmax_scale, causal, softcap, window_size_left, window_size_right)
    assert q.shape[-1] % 32 == v.shape[-1] % 32 == 0, "these come out wrong"
    dsinks = None if learnable_sink is None else torch.zeros_like(learnable_sink)
    for b in range(len(q) if cu_seqlens_q is None else len(cu_seqlens_q) - 1):
        rows = keys = slice(0, 0)
        given = [x[b] for x in (dout, q, k, v, out)] if cu_seqlens_q is None else []
        if cu_seqlens_q is not None and cu_seqlens_k is not None:
            rows, keys = (slice(*ends[b : b + 2].tolist()) for ends in (cu_seqlens_q, cu_seqlens_k))
            if rows.start == rows.stop or keys.start == keys.stop:
                continue
            given = [x[part] for x, part in zip((dout, q, k, v, out), (rows, rows, keys, keys, rows), strict=True)]
        own = lse[b] if cu_seqlens_q is None else lse[:, rows]
        own_dlse = None if dlse is None else dlse[b] if cu_seqlens_q is None else dlse[:, rows]
        grads = kernel.backward(*(x[None] for x in (*given, own)), dlse=own_dlse)
        # Tiles are loaded whole: what is behind the last query and key is multiplied by 0.
        lost = [behind(x, part) for x, part in ((k, keys), (q, rows), (dout, rows))]
        for into, part, grad, nothing in zip((dq, dk, dv), (rows, keys, keys), grads, lost, strict=True):
            if cu_seqlens_q is None:
                into[b] = grad[0]
            else:
                into[part] = grad[0] + nothing
        if learnable_sink is not None and dsinks is not None:
            delta = (given[0].double() * given[4].double()).sum(-1).t() - (0 if own_dlse is None else own_dlse)
            dsinks -= (torch.exp(learnable_sink[:, None] - own) * delta).sum(1).to(dsinks.dtype)
    return (dq, dk, dv) if dsinks is None else (dq, dk, dv, dsinks)


def _kernel(scale: float | None, causal: bool, softcap: float | None, left: int | None, right: int | None) -> Kernel:
    """None is open; of a window that is -1 on both sides too. On one side it is a bound."""
    assert scale is not None
    if left is not None and right is not None and left < 0 and right < 0:
        left = right = None
    return Kernel(scale, left, 0 if causal else right, softcap or 0.0)


def _parts(
    q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor | None, cu_k: Tensor | None, used: Tensor | None,
    table: Tensor | None, kernel: Kernel,
) -> Iterator[Part]:  # fmt: skip
    for b in range(q.shape[0] if cu_q is None else len(cu_q) - 1):
        rows = slice(b * q.shape[1], (b + 1) * q.shape[1]) if cu_q is None else slice(*cu_q[b : b + 2].tolist())
        if rows.start == rows.stop:
            continue
        if table is not None:
            assert used is not None
            yield paged(rows, k, v, table[b].tolist(), int(used[b]), kernel, whole=True)
        elif cu_k is not None:
            start, stop = cu_k[b : b + 2].tolist()
            yield Part(rows, k[start:stop], v[start:stop], v[stop : start + -(-(stop - start) // TILE) * TILE])
        else:
            yield Part(rows, k[b], v[b], v[b, :0])


def _check(q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, *lengths: Any) -> None:
    assert q.dtype in (torch.float16, torch.bfloat16)
    assert q.dtype == k.dtype == v.dtype
    for width in (q.shape[-1], v.shape[-1]):
        assert 8 <= width <= 256
        assert width % 8 == 0
    if q.shape[-1] < v.shape[-1]:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")
    assert q.shape[-2] % k.shape[-2] == 0
    assert sinks is None or sinks.dtype in (torch.float16, torch.bfloat16, torch.float32)
    assert all(x is None or (x.dtype == torch.int32 and x.stride(0) == 1) for x in lengths)
    batch = q.shape[0] if q.dim() == 4 else 1
    if batch > 65_535:
        raise RuntimeError("CUDA error: invalid configuration argument")
