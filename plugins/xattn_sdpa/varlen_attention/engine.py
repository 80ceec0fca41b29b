"""Packed sequences on the CPU: the engine of `attention` for each run of equal sequences."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from xattn_sdpa.attention import engine as dense
from xattn_sdpa.attention import fused
from xattn_sdpa.attention.engine import Settings
from xattn_sdpa.varlen_attention.runs import Run, runs

# q, k, v, sinks, alibi_slopes, cu_seqlens_q, cu_seqlens_k, align: the last one off a sequence, or None.
Tensors = tuple[Tensor | None, ...]


def forward(tensors: Tensors, settings: Settings) -> tuple[Tensor, Tensor]:
    """out (total_q, nheads, headdim_v), and lse (nheads, total_q) in the dtype of the scores. settings: its offset is
    that of every sequence where there is no align."""
    q, k, v, sinks, slopes, *_ = tensors
    assert q is not None
    assert k is not None
    assert v is not None
    found = _runs(tensors, settings)
    plain = slopes is None and settings.softcap is None and settings.scale > 0
    end = found[-1].end_q if found else 0
    out = lse = None
    for run in found:
        own = run.queries(q), run.keys(k), run.keys(v)
        if plain and run.tile is not None:
            part, part_lse = fused.forward_tile(*own, settings.scale, run.tile)
        else:
            given = (*own, None, _slopes(slopes, run), None, None)
            part, part_lse = dense.forward(given, None, replace(settings, offset=run.geometry.offset))
        part, part_lse = part.flatten(0, 1), part_lse.transpose(0, 1).flatten(1)
        if len(part) == len(q):
            out, lse = part.contiguous(), part_lse
            break
        if out is None or lse is None:
            out, lse = q.new_empty(len(q), *part.shape[1:]), part_lse.new_empty(len(part_lse), len(q))
        # Copied while the caches still have it; its memory is then the next one's.
        out[run.first_q : run.end_q] = part
        lse[:, run.first_q : run.end_q] = part_lse
    if out is None or lse is None:
        return _padding(q, v, len(q))
    if sinks is not None and end:
        lse[:, :end] = dense.join_sinks(out[None, :end], lse[None, :, :end], _rows(sinks, lse)).squeeze(0)
    if end < len(q):
        out[end:], lse[:, end:] = 0, -torch.inf
    return out, lse


def backward(
    dout: Tensor, dlse: Tensor | None, out: Tensor, lse: Tensor, tensors: Tensors, settings: Settings
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """dq, dk, dv, dsinks, each in the dtype and shape of its tensor."""
    q, k, v, sinks, slopes, *_ = tensors
    assert q is not None
    assert k is not None
    assert v is not None
    found = _runs(tensors, settings)
    grads: tuple[list[Tensor], ...] = ([], [], [])
    for run in found:
        own: Tensors = (run.queries(q), run.keys(k), run.keys(v), None, _slopes(slopes, run), None, None)
        dqkv = dense.backward(
            run.queries(dout),
            None if dlse is None else _of_run(dlse, run),
            run.queries(out),
            _of_run(lse, run),
            own,
            None,
            replace(settings, offset=run.geometry.offset),
            False,
        )
        for kept, grad in zip(grads, dqkv[:3], strict=True):
            kept.append(grad.flatten(0, 1))
    dsinks = None
    if sinks is not None:
        end = found[-1].end_q if found else 0
        rows = [x[..., :end][None] for x in (dlse, lse) if x is not None]
        packed = dout[None, :end], rows[0] if dlse is not None else None, out[None, :end], rows[-1]
        dsinks = dense.sink_gradients(*packed, _rows(sinks, lse)).squeeze(0).to(sinks.dtype)
    for kept, x in zip(grads, (q, k, v), strict=True):
        kept.append(x.new_zeros(x.shape[0] - sum(map(len, kept)), *x.shape[1:]))
    dq, dk, dv = map(torch.cat, grads)
    return dq, dk, dv, dsinks


def _padding(q: Tensor, v: Tensor, tokens: int) -> tuple[Tensor, Tensor]:
    """out and lse of tokens of no sequence."""
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    return q.new_zeros(tokens, q.shape[1], v.shape[2]), q.new_full((q.shape[1], tokens), -torch.inf, dtype=wide)


def _rows(sinks: Tensor, lse: Tensor) -> Tensor:
    """(1, nheads, 1), in the dtype of the scores."""
    return sinks.to(lse.dtype)[None, :, None]


def _runs(tensors: Tensors, settings: Settings) -> tuple[Run, ...]:
    *_, cu_seqlens_q, cu_seqlens_k, align = tensors
    assert cu_seqlens_q is not None
    assert cu_seqlens_k is not None
    ends_q = tuple(cu_seqlens_q.tolist())
    ends_k = ends_q if cu_seqlens_k is cu_seqlens_q else tuple(cu_seqlens_k.tolist())
    offsets = (settings.offset,) if align is None else tuple(align.tolist())
    return runs(ends_q, ends_k, offsets, settings.left, settings.right)


def _of_run(lse: Tensor, run: Run) -> Tensor:
    """(count, nheads, seqlen_q) of (nheads, total_q)."""
    return run.queries(lse, 1).transpose(0, 1)


def _slopes(slopes: Tensor | None, run: Run) -> Tensor | None:
    return slopes if slopes is None or slopes.dim() == 1 else slopes[run.sequences]
