"""attention_cte of the NKI library, as read at commit d2ad3a5 of 2026-04-13 (SDK 2.29)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from xattn_conformance.ops.attention.problem import Problem

from xattn_elsewhere import exact
from xattn_elsewhere.exact import array
from xattn_elsewhere.nki.standin.kernel import (
    PMAX,
    Grid,
    Kernel,
    check_cores,
    check_dma_transpose,
    dtype_name,
    nki_assert,
    tiled,
)

# What hides a score. It is put in place before the scale, which takes it along.
_LOW = torch.finfo(torch.float32).min
_MAX_BATCH, _MAX_SEQLEN, _MAX_HEADDIM = 512, 131072, 128


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
    seqlen_q = q.shape[1]
    prior = k_prior is not None
    if window or prior:
        nki_assert(scale == 1.0, f"SWA/Prefix Caching/CP only support scale=1.0, but got {scale}")
    nki_assert(causal_mask or not window, "SWA currently only supports causal attn")

    row, key = np.arange(float(seqlen_q))[:, None], np.arange(k.shape[1])
    # The diagonal begins in the first row and column of the active keys.
    upper = row if causal_mask else np.full_like(row, k.shape[1] - 1)
    lower = row - (window - 1) if window else np.zeros_like(row)
    if bound_min is not None and bound_max is not None:
        for bound in (bound_min, bound_max):
            nki_assert(tuple(bound.shape) == (seqlen_q, 1), f"bounds are {(seqlen_q, 1)}, got {tuple(bound.shape)}")
        nki_assert(not prior, "is_sequence_packed is not supported with prefix caching")
        nki_assert(seqlen_q % PMAX == 0, f"cannot reshape {seqlen_q} bounds to rows of {PMAX}")
        nki_assert(scale == 1.0, "range_select path doesn't support scale != 1.0")
        # Below its diagonal, a causal query has bound_max itself, too.
        upper = np.minimum(upper, array(bound_max) - (0 if causal_mask else 1))
        lower = array(bound_min)
        if window:
            lower = np.maximum(lower, upper - (window - 1))
    seen = (key >= lower) & (key <= upper)
    if k_prior is not None and v_prior is not None and prior_used_len is not None:
        used, before = int(prior_used_len[0]), np.arange(k_prior.shape[1])
        seen_before = (before < used) & (before > row + used - window if window else row >= 0)
        seen = np.concatenate([seen_before, seen], 1)
        k, v = torch.cat([k_prior, k], 1), torch.cat([v_prior, v], 1)

    # Operands are bfloat16. Each row of the folded batch is a head.
    rows, keys, values = (array(x.bfloat16()).swapaxes(0, 1)[None] for x in (q, k, v))
    sinks = None if sink is None else array(sink[:, 0])
    problem = Problem(dtype_name(q.dtype), rows, keys, values, scale=scale, sinks=sinks, mask=seen)
    # Hidden first, scaled then: no scale but a positive one keeps a key hidden.
    found = exact.filled(exact.forward(problem), problem, ~seen, _LOW * scale)
    out = torch.from_numpy(found.out[0].swapaxes(0, 1)).to(q.dtype)
    out = (out.mT if tp_out else out).contiguous()
    if not cache_softmax:
        return out
    return out, *(tiled(x[0]).to(softmax_dtype) for x in (-found.top, 1 / found.total))


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
