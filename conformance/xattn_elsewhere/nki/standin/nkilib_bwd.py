"""attention_bwd of the NKI library, as read at commit d2ad3a5 of 2026-04-13 (SDK 2.29)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor
from xattn_conformance.ops.attention.problem import Problem

from xattn_elsewhere import exact
from xattn_elsewhere.exact import array
from xattn_elsewhere.nki.standin.kernel import PMAX, Grid, Kernel, check_cores, dtype_name, nki_assert, untiled

_K_TILE = 512
_SECTION = 8192


@Kernel
def attention_bwd(
    grid: Grid,
    q_ref: Tensor,
    k_ref: Tensor,
    v_ref: Tensor,
    o_ref: Tensor,
    dy_ref: Tensor,
    lse_ref: Tensor,
    sinks_ref: Tensor | None = None,
    bound_min: Tensor | None = None,
    bound_max: Tensor | None = None,
    use_causal_mask: bool = False,
    mixed_precision: bool = False,
    softmax_scale: float | None = None,
    sliding_window: int | None = None,
) -> Any:
    check_cores(grid)
    if bound_min is not None or bound_max is not None:
        raise NotImplementedError("the stand-in knows no packed sequences in the backward")
    window = sliding_window or 0
    batch, nheads, headdim, seqlen_q = q_ref.shape
    seqlen_k = k_ref.shape[3]
    _check(q_ref, k_ref, v_ref, o_ref, dy_ref, lse_ref, sinks_ref, use_causal_mask, window)
    scale = softmax_scale or 1.0 / math.sqrt(headdim)  # 0.0 is taken for None
    dtype = q_ref.dtype
    row, key = np.arange(seqlen_q)[:, None], np.arange(seqlen_k)
    q, k, v, out, dout = (array(x).transpose(0, 3, 1, 2) for x in (q_ref, k_ref, v_ref, o_ref, dy_ref))
    problem = Problem(
        dtype=dtype_name(dtype),
        q=q,
        k=k,
        v=v,
        scale=scale,
        mask=(key <= row) & (key > row - window if window else True) if use_causal_mask else None,
    )
    # Without mixed precision even lse is rounded.
    lse = array(untiled(lse_ref).to(torch.float32 if mixed_precision else dtype))
    found = exact.gradients(problem, out, lse, dout)
    dq, dk, dv = (torch.from_numpy(x.transpose(0, 2, 3, 1)).to(dtype).contiguous() for x in (found.q, found.k, found.v))
    if sinks_ref is None:
        return dq, dk, dv
    sinks = array(sinks_ref).reshape(batch, nheads, -1)
    return dq, dk, dv, torch.from_numpy(found.sinks(sinks, lse)).to(sinks_ref.dtype).view(sinks_ref.shape)


def _check(
    q: Tensor, k: Tensor, v: Tensor, o: Tensor, dy: Tensor, lse: Tensor, sinks: Tensor | None, causal: bool, window: int
) -> None:
    batch, nheads, headdim, seqlen_q = q.shape
    nheads_k, seqlen_k = k.shape[1], k.shape[3]
    nki_assert(nheads % nheads_k == 0, f"Query heads {nheads} should be divisible by key/value heads ({nheads_k})")
    for name, x, wanted in (
        ("K", k, (batch, nheads_k, headdim, seqlen_k)),
        ("V", v, (batch, nheads_k, headdim, seqlen_k)),
        ("o", o, (batch, nheads, headdim, seqlen_q)),
        ("dy", dy, (batch, nheads, headdim, seqlen_q)),
        ("lse", lse, (batch, nheads, PMAX, seqlen_q // PMAX)),
    ):
        nki_assert(tuple(x.shape) == wanted, f"Input {name} shape mismatch, got {tuple(x.shape)}")
    lengths = f"{seqlen_q} and {seqlen_k}"
    nki_assert(not causal or seqlen_q == seqlen_k, f"Causal attention assumes the same sequence length, got {lengths}")
    dtypes = [x.dtype for x in (q, k, v, o, dy)]
    nki_assert(len(set(dtypes)) == 1, f"Got multiple input dtypes {dtypes}")
    if sinks is not None:
        required = (batch, nheads, sinks.shape[-1]) if sinks.dim() == 3 else (batch, nheads)
        nki_assert(tuple(sinks.shape) == required, f"Attention sinks: required {required}, got {tuple(sinks.shape)}")
    nki_assert(window <= 0 or causal, "Sliding window is supported for causal attention only")
    pieces = math.ceil(headdim / PMAX)
    piece = math.ceil(headdim / pieces)
    nki_assert(headdim % piece == 0, f"Can not create tiles of equal size for given head dimension {headdim}")
    tile, section = min(_K_TILE, seqlen_k), _SECTION // 2 ** (pieces - 1).bit_length()
    nki_assert(seqlen_k % tile == 0, f"Key sequence length should be multiple of {tile}, got {seqlen_k}")
    nki_assert(section % tile == 0, f"Key section length should be multiple of {tile}, got {section}")
    nki_assert(tile % PMAX == 0, f"Key sequence tile size should be multiple of {PMAX}, got {tile}")
    nki_assert(seqlen_q % PMAX == 0, f"Query sequence length should be multiple of {PMAX}, got {seqlen_q}")
