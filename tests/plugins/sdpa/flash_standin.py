"""What torch's flash kernel does with packed sequences on CUDA, in float64 on the CPU: see flash_api.cpp and
flash_fwd_kernel.h of torch 2.11. It writes the rows of its sequences and no others, says inf of queries that see no
key, multiplies what is hidden by zero, counts from the bottom right, and takes bounds at their word."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor


def visible(queries: int, keys: int, causal: bool, left: int, right: int, max_k: int) -> Tensor:
    left, right = (max_k if side < 0 or side >= max_k else side for side in (left, right))
    if causal:
        right = 0
    off = keys - queries
    i, j = torch.arange(queries).unsqueeze(1) + off, torch.arange(keys)
    return (j >= i - left) & (j <= i + right)


def _check(q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor, max_q: int, used: Tensor | None) -> None:
    for x in (q, k, v):
        assert x.shape[2] == q.shape[2]
        assert q.shape[2] % 8 == 0
        assert q.shape[2] <= 256
        assert x.stride(2) == 1
    assert cu_q.shape == cu_k.shape
    assert len(cu_q) > 1
    assert cu_q.dtype == cu_k.dtype == torch.int32
    assert cu_q.is_contiguous()
    assert cu_k.is_contiguous()
    assert used is None or (used.dtype == torch.int32 and used.shape == (len(cu_q) - 1,) and used.is_contiguous())
    assert int(cu_q.diff().max()) <= max_q
    if max_q == 1:  # the heads of a group become queries, and token b is that of sequence b
        assert len(q) == len(cu_q) - 1


def _of(x: Tensor, group: int) -> Tensor:
    return x.double().repeat_interleave(group, 1).transpose(0, 1)


def forward(
    q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor, max_q: int, max_k: int, dropout_p: float,
    causal: bool, debug: bool, *, scale: float, seqused_k: Tensor | None = None, window_size_left: int = -1,
    window_size_right: int = -1,
) -> tuple[Tensor, ...]:  # fmt: skip
    _check(q, k, v, cu_q, cu_k, max_q, seqused_k)
    group = q.shape[1] // k.shape[1]
    out = torch.full(q.shape, torch.nan, dtype=q.dtype)
    lse = torch.full((q.shape[1], len(q)), torch.nan)
    for b, (start, end) in enumerate(itertools.pairwise(cu_q.tolist())):
        first = int(cu_k[b])
        keys = slice(first, first + int(seqused_k[b]) if seqused_k is not None else int(cu_k[b + 1]))
        assert keys.stop - keys.start <= max_k
        rows, ks, vs = _of(q[start:end], 1), _of(k[keys], group), _of(v[keys], group)
        seen = visible(end - start, ks.shape[1], causal, window_size_left, window_size_right, max_k)
        scores = (rows @ ks.mT * scale).masked_fill(~seen, -torch.inf)
        found = scores.logsumexp(-1) if ks.shape[1] else torch.full(scores.shape[:2], -torch.inf).double()
        weights = torch.exp(scores - found.masked_fill(found == -torch.inf, 0.0).unsqueeze(-1))
        out[start:end] = (weights @ vs).transpose(0, 1).to(out.dtype)
        lse[:, start:end] = found.masked_fill(found == -torch.inf, torch.inf).float()
    return out, lse, None, None, None  # type: ignore[return-value]


def backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, cu_q: Tensor, cu_k: Tensor, max_q: int,
    max_k: int, dropout_p: float, causal: bool, state: Any, unused: Any, *, scale: float, window_size_left: int = -1,
    window_size_right: int = -1,
) -> tuple[Tensor, ...]:  # fmt: skip
    _check(q, k, v, cu_q, cu_k, max_q, None)
    assert lse.is_contiguous()
    assert dout.shape == out.shape == q.shape
    group = q.shape[1] // k.shape[1]
    dq, dk, dv = (torch.full(x.shape, torch.nan, dtype=x.dtype) for x in (q, k, v))
    bounds = zip(cu_q.tolist(), cu_q[1:].tolist(), cu_k.tolist(), cu_k[1:].tolist(), strict=False)
    for start, end, first, last in bounds:
        assert last - first <= max_k
        keys = slice(first, last)
        rows, ks, vs = _of(q[start:end], 1), _of(k[keys], group), _of(v[keys], group)
        do, o = _of(dout[start:end], 1), _of(out[start:end], 1)
        seen = visible(end - start, last - first, causal, window_size_left, window_size_right, max_k)
        scores = (rows @ ks.mT * scale).masked_fill(~seen, -torch.inf)
        weights = torch.exp(scores - lse[:, start:end].double().unsqueeze(-1))
        ds = weights * (do @ vs.mT - (do * o).sum(-1, keepdim=True))
        if not last - first:
            ds = torch.zeros_like(ds)
        dq[start:end] = (ds @ ks * scale).transpose(0, 1).to(dq.dtype)
        for total, grad in ((dk, ds.mT @ rows * scale), (dv, weights.mT @ do)):
            total[keys] = grad.unflatten(0, (-1, group)).sum(1).transpose(0, 1).to(total.dtype)
    return dq, dk, dv
