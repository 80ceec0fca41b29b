"""flash_fwd and flash_attn_bwd of neuronxcc.nki.kernels.attention, as its public source in nki-samples had them before
commit c4b806e of 2026-01-20."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from xattn_conformance.ops.attention.problem import Problem

from xattn_elsewhere import exact
from xattn_elsewhere.exact import array, rounded
from xattn_elsewhere.nki.standin.flash import Flash, check, check_tiles, programs
from xattn_elsewhere.nki.standin.kernel import PMAX, Grid, Kernel, dtype_name, untiled, unwritten

_NO_DROPOUT = "the stand-in has not the random numbers of a NeuronCore"
_LOW = torch.finfo(torch.float32).min
# What hides a score in the backward.
_LOW_BACKWARD = -9984.0


@dataclass(frozen=True)
class FlashConfig:
    """As AWS's."""

    seq_tile_size: int = 2048
    attn_core_tile_size: int = 256
    training: bool = True
    should_transpose_v: bool = False
    lse_dtype: str = ""


@Kernel
def flash_fwd(
    grid: Grid,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    seed: Tensor | None,
    logit_bias: Tensor | None = None,
    softmax_scale: float | None = None,
    use_causal_mask: bool = True,
    sliding_window: int = -1,
    mixed_precision: bool = True,
    dropout_p: float = 0.0,
    config: FlashConfig | None = None,
) -> Any:
    config = config or FlashConfig()
    check(q, k, v, config)
    causal = True if sliding_window > 0 else use_causal_mask
    scale = softmax_scale or (1.0 / q.shape[2] ** 0.5)  # 0.0 is taken for None
    check_tiles(k, config)
    if not config.training:
        assert seed is None, f"seed should be None for inference, but got {seed}"
        assert dropout_p == 0.0, f"dropout should be 0.0 for inference but got {dropout_p}"
    if dropout_p > 0.0:
        raise NotImplementedError(_NO_DROPOUT)
    if logit_bias is not None:
        assert logit_bias.shape[:2] == (1, 1), "only support broadcasting logit_bias with batch 1, n_heads 1"
    kept = torch.float32 if mixed_precision else q.dtype
    flash = Flash(
        scale=scale,
        low=_LOW,
        causal=causal,
        window=sliding_window,
        tile=config.seq_tile_size,
        kernel=torch.bfloat16 if mixed_precision else q.dtype,
        kept=kept,
        bias=None if logit_bias is None else logit_bias[0, 0],
    )
    lse_dtype: torch.dtype = getattr(torch, config.lse_dtype) if config.lse_dtype else kept
    out, lse = flash.run(grid, q, k, v.mT if config.should_transpose_v else v, lse_dtype)
    return (out, lse) if config.training else out


@Kernel
def flash_attn_bwd(
    grid: Grid,
    q_ref: Tensor,
    k_ref: Tensor,
    v_ref: Tensor,
    o_ref: Tensor,
    dy_ref: Tensor,
    lse_ref: Tensor,
    seed_ref: Tensor | None,
    logit_bias_ref: Tensor | None = None,
    use_causal_mask: bool = False,
    mixed_precision: bool = False,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    sliding_window: int = -1,
    sinks: Tensor | None = None,
) -> Any:
    headdim = q_ref.shape[2]
    window = min(sliding_window, k_ref.shape[3])
    _check(q_ref, k_ref, v_ref, o_ref, dy_ref, lse_ref, seed_ref, sinks, use_causal_mask, window)
    scale = softmax_scale or 1.0 / headdim**0.5  # 0.0 is taken for None
    batch, *_ = programs(grid, q_ref, k_ref)
    assert grid[1] == k_ref.shape[1], f"The grid shape mismatch, got {grid[1]} but should be {k_ref.shape[1]}"
    if logit_bias_ref is not None:
        assert logit_bias_ref.shape[:2] == (1, 1), "Only support broadcasting logit_bias with batch 1, n_heads 1"
    if dropout_p > 0.0:
        raise NotImplementedError(_NO_DROPOUT)
    if headdim > PMAX and headdim % PMAX:
        raise IndexError(f"headdim {headdim} is walked in tiles of {PMAX}, past its end")
    dtype = q_ref.dtype
    mixed = torch.float32 if mixed_precision else dtype
    dq, dk, dv = (unwritten(x.shape, dtype) for x in (q_ref, k_ref, v_ref))
    tile = 512 if k_ref.shape[3] >= 512 else 128
    # Keys past the last whole tile are left out.
    keys = k_ref.shape[3] // tile * tile
    row, key = np.arange(q_ref.shape[3])[:, None], np.arange(keys)
    q, k, v, out, dout = (array(x[:batch]).transpose(0, 3, 1, 2) for x in (q_ref, k_ref, v_ref, o_ref, dy_ref))
    problem = Problem(
        dtype=dtype_name(dtype),
        q=q,
        k=k[:, :keys],
        v=v[:, :keys],
        scale=scale,
        bias=None if logit_bias_ref is None else array(logit_bias_ref[0, 0, :, :keys].to(dtype)),
        mask=(key <= row) & (key > row - window if window > 0 else True) if use_causal_mask else None,
    )
    lse = array(untiled(lse_ref[:batch]).to(mixed))
    found = exact.gradients(problem, out, lse, dout, low=_LOW_BACKWARD, stored=lambda x: rounded(x, dtype))
    for total, part in ((dq, found.q), (dk[..., :keys], found.k), (dv[..., :keys], found.v)):
        total[:batch] = torch.from_numpy(part.transpose(0, 2, 3, 1)).to(dtype)
    if sinks is None:
        return dq, dk, dv
    dsinks = unwritten(sinks.shape, mixed)
    dsinks[:batch] = torch.from_numpy(found.sinks(array(sinks[:batch].to(mixed))[..., None], lse)[..., 0]).to(mixed)
    return dq, dk, dv, dsinks


def _check(
    q: Tensor, k: Tensor, v: Tensor, o: Tensor, dy: Tensor, lse: Tensor, seed: Tensor | None, sinks: Tensor | None,
    causal: bool, window: int,
) -> None:  # fmt: skip
    assert q.dtype == k.dtype == v.dtype == o.dtype == dy.dtype
    batch, nheads, headdim, seqlen_q = q.shape
    nheads_k, seqlen_k = k.shape[1], k.shape[3]
    assert window <= 0 or causal, "Sliding window is supported for causal attention only"
    assert nheads % nheads_k == 0, f"Query heads ({nheads}) is not divisible by key/value heads ({nheads_k})"
    for name, x, wanted in (
        ("K", k, (batch, nheads_k, headdim, seqlen_k)),
        ("V", v, (batch, nheads_k, headdim, seqlen_k)),
        ("o", o, (batch, nheads, headdim, seqlen_q)),
        ("dy", dy, (batch, nheads, headdim, seqlen_q)),
        ("lse", lse, (batch, nheads, PMAX, seqlen_q // PMAX)),
    ):
        assert tuple(x.shape) == wanted, f"Input {name} shape mismatch, got {tuple(x.shape)}"
    assert seed is None or tuple(seed.shape) == (1,), f"Input seed shape mismatch, got {seed.shape}"
    assert sinks is None or tuple(sinks.shape) == (batch, nheads)
    for seqlen in (seqlen_q, seqlen_k):
        assert seqlen % PMAX == 0, f"Input sequence lengths must be divisible by {PMAX}, got {seqlen}"
