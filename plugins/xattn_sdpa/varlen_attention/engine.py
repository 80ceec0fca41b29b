"""Packed sequences on the CPU: the engine of `attention` for each run of equal sequences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from xattn_sdpa.attention import engine as dense
from xattn_sdpa.attention import fused
from xattn_sdpa.attention.engine import Settings
from xattn_sdpa.varlen_attention.runs import Run, parts, runs

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
    outs, lses = [], []
    for run, q_run, k_run, v_run in zip(found, *_split(found, q, k, v), strict=True):
        tile = fused.only_tile(run.geometry(settings.left, settings.right)) if plain else None
        if tile is not None:
            out, lse = fused.forward_tile(q_run, k_run, v_run, settings.scale, tile)
        else:
            own = (q_run, k_run, v_run, None, _slopes(slopes, run), None, None)
            out, lse = dense.forward(own, None, replace(settings, offset=run.offset))
        outs.append(out.flatten(0, 1))
        lses.append(lse.transpose(0, 1).flatten(1))
    if not outs:
        return _padding(q, v, len(q))
    out, lse = _joined(outs, 0), _joined(lses, 1)
    if sinks is not None:
        lse = dense.join_sinks(out[None], lse[None], _rows(sinks, lse)).squeeze(0)
    if len(out) < len(q):
        zeros, dead = _padding(q, v, len(q) - len(out))
        out, lse = torch.cat((out, zeros)), torch.cat((lse, dead), 1)
    return out.contiguous(), lse


def backward(
    dout: Tensor, dlse: Tensor | None, out: Tensor, lse: Tensor, tensors: Tensors, settings: Settings
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """dq, dk, dv, dsinks, each in the dtype and shape of its tensor."""
    q, k, v, sinks, slopes, *_ = tensors
    assert q is not None
    assert k is not None
    assert v is not None
    found = _runs(tensors, settings)
    queries = [run.seqlen_q for run in found]
    results = [parts(x, found, queries) for x in (dout, out)]
    # (nheads, count, seqlen_q) -> (count, nheads, seqlen_q)
    lses = [[x.transpose(0, 1) for x in parts(each, found, queries, 1)] for each in (lse, dlse) if each is not None]
    grads: tuple[list[Tensor], ...] = ([], [], [])
    for i, (run, *qkv) in enumerate(zip(found, *_split(found, q, k, v), strict=True)):
        own: Tensors = (*qkv, None, _slopes(slopes, run), None, None)
        through_lse = lses[1][i] if dlse is not None else None
        dqkv = dense.backward(
            results[0][i],
            through_lse,
            results[1][i],
            lses[0][i],
            own,
            None,
            replace(settings, offset=run.offset),
            False,
        )
        for kept, grad in zip(grads, dqkv[:3], strict=True):
            kept.append(grad.flatten(0, 1))
    dsinks = None
    if sinks is not None:
        end = sum(map(len, grads[0]))
        rows = [x[..., :end][None] for x in (dlse, lse) if x is not None]
        packed = dout[None, :end], rows[0] if dlse is not None else None, out[None, :end], rows[-1]
        dsinks = dense.sink_gradients(*packed, _rows(sinks, lse)).squeeze(0).to(sinks.dtype)
    for kept, x in zip(grads, (q, k, v), strict=True):
        kept.append(x.new_zeros(x.shape[0] - sum(map(len, kept)), *x.shape[1:]))
    dq, dk, dv = (_joined(kept, 0) for kept in grads)
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
    return runs(ends_q, ends_k, (settings.offset,) if align is None else tuple(align.tolist()))


def _split(found: Sequence[Run], q: Tensor, k: Tensor, v: Tensor) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    keys = [run.seqlen_k for run in found]
    return parts(q, found, [run.seqlen_q for run in found]), parts(k, found, keys), parts(v, found, keys)


def _slopes(slopes: Tensor | None, run: Run) -> Tensor | None:
    return slopes if slopes is None or slopes.dim() == 1 else slopes[run.sequences]


def _joined(found: list[Tensor], dim: int) -> Tensor:
    return found[0] if len(found) == 1 else torch.cat(found, dim)
