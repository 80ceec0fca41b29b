"""attention_cte of the NKI library, as read at commit d2ad3a5 of 2026-04-13 (SDK 2.29)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from xattn_elsewhere.nki.standin.kernel import (
    PMAX,
    Grid,
    Kernel,
    check_cores,
    check_dma_transpose,
    nki_assert,
    rounded,
    unwritten,
)

# What hides a score. It is put in place before the scale, which takes it along.
_LOW = torch.finfo(torch.float32).min
_MAX_BATCH, _MAX_SEQLEN, _MAX_HEADDIM = 512, 131072, 128
_K_TILE, _V_TILE = 512, 128
# More keys than these are walked in sections, and out lies in its own dtype between two of them.
_ONE_SECTION, _SECTION = 10 * 1024, 8 * 1024


@dataclass(frozen=True)
class _Call:
    """What holds for every row of the folded batch. lower, upper: the first and last active key of each query."""

    seqlen_q: int
    scale: float
    causal: bool
    window: int
    lower: Tensor
    upper: Tensor
    used: int


@dataclass(frozen=True)
class _Keys:
    """The keys of a row in the order of the walk: the prior ones, padded to whole tiles, then the active ones.

    place: in the tensor that they are from. walked: in the walk, of `length`. prior: which tensor that is.
    """

    place: Tensor
    walked: Tensor
    prior: Tensor
    length: int


@Kernel
def attention_cte(
    grid: Grid,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float = 1.0,
    causal_mask: bool = True,
    k_prior: Tensor | None = None,
    v_prior: Tensor | None = None,
    prior_used_len: Tensor | None = None,
    sink: Tensor | None = None,
    sliding_window: int | None = None,
    tp_q: bool = True,
    tp_k: bool = False,
    tp_out: bool = False,
    cache_softmax: bool = False,
    softmax_dtype: torch.dtype = torch.float32,
    mm_out_dtype: torch.dtype = torch.float32,
    cp_offset: Tensor | None = None,
    global_cp_deg: int | None = None,
    cp_strided_q_slicing: bool = False,
    bound_min: Tensor | None = None,
    bound_max: Tensor | None = None,
) -> Any:
    check_cores(grid)
    check_dma_transpose()
    if global_cp_deg is not None or cp_offset is not None or cp_strided_q_slicing:
        raise NotImplementedError("the stand-in knows no context parallelism")
    window = sliding_window or 0
    given = [x is not None for x in (k_prior, v_prior, prior_used_len)]
    nki_assert(all(given) or not any(given), "k_prior, v_prior and prior_used_len go together")
    nki_assert((bound_min is None) == (bound_max is None), "bound_min and bound_max must both be set or both be None")
    q, k = q if tp_q else q.mT, k if tp_k else k.mT
    k_prior = k_prior if tp_k or k_prior is None else k_prior.mT
    _check(q, k, v, k_prior, v_prior, prior_used_len, window, cache_softmax, mm_out_dtype)
    batch, seqlen_q, headdim = q.shape
    prior = k_prior is not None
    if window or prior:
        nki_assert(scale == 1.0, f"SWA/Prefix Caching/CP only support scale=1.0, but got {scale}")
    nki_assert(causal_mask or not window, "SWA currently only supports causal attn")

    lower, upper = _bounds(seqlen_q, k.shape[1], causal_mask, window)
    if bound_min is not None and bound_max is not None:
        for bound in (bound_min, bound_max):
            nki_assert(tuple(bound.shape) == (seqlen_q, 1), f"bounds are {(seqlen_q, 1)}, got {tuple(bound.shape)}")
        nki_assert(not prior, "is_sequence_packed is not supported with prefix caching")
        nki_assert(seqlen_q % PMAX == 0, f"cannot reshape {seqlen_q} bounds to rows of {PMAX}")
        nki_assert(scale == 1.0, "range_select path doesn't support scale != 1.0")
        # Below its diagonal, a causal query has bound_max itself, too.
        upper = torch.minimum(upper, bound_max[:, 0].float() - (0 if causal_mask else 1))
        lower = bound_min[:, 0].float()
        if window:
            lower = torch.maximum(lower, upper - (window - 1))

    used = 0 if prior_used_len is None else int(prior_used_len[0])
    call = _Call(seqlen_q, scale, causal_mask, window, lower, upper, used)
    keys = _keys(0 if k_prior is None else k_prior.shape[1], k.shape[1])
    out = unwritten((batch, seqlen_q, headdim), q.dtype)
    stats = [unwritten((batch, PMAX, math.ceil(seqlen_q / PMAX)), softmax_dtype) for _ in range(2)]
    for row in range(batch):
        of = row // (batch // k.shape[0])
        k_row = k[of] if k_prior is None else torch.cat([k_prior[of], k[of]])
        v_row = v[of] if v_prior is None else torch.cat([v_prior[of], v[of]])
        tensors = [rounded(x, torch.bfloat16) for x in (q[row], k_row, v_row)]
        logit = None if sink is None else float(sink[row, 0])
        for group in range(stats[0].shape[2]):
            rows = slice(group * PMAX, min((group + 1) * PMAX, seqlen_q))
            out[row, rows], top, total = _group(call, keys, rows, tensors, logit, q.dtype)
            stats[0][row, : len(top), group] = -top
            stats[1][row, : len(top), group] = 1 / total
    out = out.mT.contiguous() if tp_out else out
    return (out, *stats) if cache_softmax else out


def _check(
    q: Tensor, k: Tensor, v: Tensor, k_prior: Tensor | None, v_prior: Tensor | None, used: Tensor | None, window: int,
    cache_softmax: bool, mm_out_dtype: torch.dtype,
) -> None:  # fmt: skip
    """Tensors as (batch, seqlen, headdim)."""
    if used is not None:
        nki_assert(tuple(used.shape) == (1,), f"prior_used_len is (1,), one for the batch; got {tuple(used.shape)}")
    batch, seqlen_q, headdim = q.shape
    batch_kv, seqlen_k, _ = k.shape
    _shape("k", k, (batch_kv, seqlen_k, headdim))
    _shape("v", v, (batch_kv, seqlen_k, headdim))
    if k_prior is not None and v_prior is not None:
        seqlen_prior = k_prior.shape[1]
        _shape("k_prior", k_prior, (batch_kv, seqlen_prior, headdim))
        _shape("v_prior", v_prior, (batch_kv, seqlen_prior, headdim))
        seqlen_k += seqlen_prior
    if cache_softmax:
        nki_assert(seqlen_q % PMAX == 0, f"cache_softmax expects seqlen_q a multiple of {PMAX}, got {seqlen_q}")
    nki_assert(0 < batch <= _MAX_BATCH, f"batch size from 1 to {_MAX_BATCH}, got {batch}")
    nki_assert(batch_kv > 0 and batch % batch_kv == 0, f"batch size {batch} must be a multiple of {batch_kv}")
    nki_assert(seqlen_q <= _MAX_SEQLEN, f"not tested for seqlen above {_MAX_SEQLEN}, got {seqlen_q}")
    nki_assert(seqlen_k <= _MAX_SEQLEN, f"not tested for seqlen above {_MAX_SEQLEN}, got {seqlen_k}")
    nki_assert(0 <= window <= _MAX_SEQLEN, f"sliding_window from 0 to {_MAX_SEQLEN}, got {window}")
    nki_assert(0 < headdim <= _MAX_HEADDIM, f"we do not support head_dim > {_MAX_HEADDIM}, got head dim {headdim}")
    nki_assert(mm_out_dtype == torch.float32, f"mm_out_dtype {mm_out_dtype} needs gen4")
    nki_assert(seqlen_q > 0 and seqlen_k > 0, f"seqlens must be positive, got {seqlen_q} and {seqlen_k}")


def _shape(name: str, x: Tensor, wanted: tuple[int, ...]) -> None:
    got = tuple(x.shape)
    nki_assert(got == wanted, f"Received unexpected shape for {name}. Expected {wanted}, received {got}.")


def _bounds(seqlen_q: int, seqlen_k: int, causal: bool, window: int) -> tuple[Tensor, Tensor]:
    """The diagonal begins in the first row and column of the active keys."""
    row = torch.arange(seqlen_q).float()
    upper = row if causal else torch.full_like(row, seqlen_k - 1)
    return (row - (window - 1) if window else torch.zeros_like(row)), upper


def _keys(seqlen_prior: int, seqlen_k: int) -> _Keys:
    padded = math.ceil(seqlen_prior / _K_TILE) * _K_TILE
    before, active = torch.arange(seqlen_prior), torch.arange(seqlen_k)
    return _Keys(
        place=torch.cat([before, active]),
        walked=torch.cat([before, padded + active]),
        prior=torch.arange(seqlen_prior + seqlen_k) < seqlen_prior,
        length=padded + seqlen_k,
    )


def _group(
    call: _Call, keys: _Keys, rows: slice, tensors: list[Tensor], sink: float | None, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """out (rows, headdim), the maximum and the sum of the exponentials (rows) of a group of queries."""
    q, k, v = tensors
    q = q[rows]
    section = _SECTION if keys.length > _ONE_SECTION else keys.length
    out = top = total = torch.empty(0)
    for start in range(0, keys.length, section):
        here = (keys.walked >= start) & (keys.walked < start + section)
        if not (here & _behind(call, keys, rows, 1)).any():
            continue
        scored = (here & _reached(call, keys, rows, _K_TILE)).nonzero()[:, 0]
        valued = (here & _reached(call, keys, rows, _V_TILE))[scored]
        scores = _scores(call, keys, rows, q @ k[scored].T, scored)
        highest = torch.cat([scores, torch.full((len(q), 1), _LOW)], 1).amax(1)
        if start == 0 and sink is not None:
            highest = highest.clamp_min(sink)
        before, top = top, highest if start == 0 else torch.maximum(top, highest)
        weights = torch.exp(scores - top[:, None])
        added = weights.sum(1)
        if start == 0 and sink is not None:
            added = added + torch.exp(sink - top)
        product = rounded(weights[:, valued], torch.bfloat16) @ v[scored[valued]]
        if start == 0:
            out, total = product, added
        else:
            kept = torch.exp(before - top)
            out, total = rounded(out, dtype) * kept[:, None] + product, total * kept + added
    return out * (1 / total)[:, None], top, total


def _behind(call: _Call, keys: _Keys, rows: slice, tile: int) -> Tensor:
    """Keys in tiles that begin before the diagonal of the group's last row, were it full."""
    if not call.causal:
        return torch.ones_like(keys.prior)
    return keys.prior.logical_or(keys.place // tile * tile <= rows.start + PMAX - 1)


def _reached(call: _Call, keys: _Keys, rows: slice, tile: int) -> Tensor:
    """Keys in tiles that the group computes."""
    behind = _behind(call, keys, rows, tile)
    if not call.window:
        return behind
    near = rows.start < keys.place // tile * tile + tile - 1 + call.window
    return behind.logical_and(keys.prior | near)


def _scores(call: _Call, keys: _Keys, rows: slice, raw: Tensor, scored: Tensor) -> Tensor:
    place, prior = keys.place[scored], keys.prior[scored]
    lower, upper = call.lower[rows, None], call.upper[rows, None]
    before = place < call.used
    if call.window:
        before = before & (place > torch.arange(rows.start, rows.stop)[:, None] + call.used - call.window)
    seen = torch.where(prior, before, (place >= lower) & (place <= upper))
    # Hidden first, scaled then: no scale but a positive one keeps a key hidden.
    return torch.where(seen, raw, _LOW) * call.scale
