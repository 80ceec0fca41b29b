"""flash_fwd and flash_attn_bwd of neuronxcc.nki.kernels.attention, as its public source in nki-samples had them before
commit c4b806e of 2026-01-20."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from xattn_elsewhere.nki.standin.flash import Head, check, check_tiles, heads
from xattn_elsewhere.nki.standin.kernel import PMAX, Grid, Kernel, rounded, unwritten

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
    programs = heads(grid, q, k)
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
    head = Head(
        scale=scale,
        low=_LOW,
        causal=causal,
        window=sliding_window,
        tile=config.seq_tile_size,
        kernel=torch.bfloat16 if mixed_precision else q.dtype,
        kept=kept,
        wanted=partial(_wanted, causal, sliding_window, config.seq_tile_size),
        bias=None if logit_bias is None else logit_bias[0, 0],
    )
    out = unwritten((*q.shape[:2], q.shape[3], q.shape[2]), q.dtype)
    lse_dtype: torch.dtype = getattr(torch, config.lse_dtype) if config.lse_dtype else kept
    lse = unwritten((*q.shape[:2], PMAX, q.shape[3] // PMAX), lse_dtype)
    v = v.mT if config.should_transpose_v else v
    for b, h, h_k in programs:
        lse[b, h] = head.forward(q[b, h], k[b, h_k], v[b, h_k], out[b, h])
    return (out, lse) if config.training else out


def _wanted(causal: bool, window: int, tile: int, i: int, j: int) -> bool:
    if causal and window < 0:
        return i * PMAX >= j * tile
    if window > 0:
        return i * PMAX >= j * tile and (j + 1) * tile - 1 > i * PMAX - window
    return True


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
    programs = heads(grid, q_ref, k_ref)
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
    dsinks = None if sinks is None else unwritten(sinks.shape, mixed)
    tile = 512 if k_ref.shape[3] >= 512 else 128
    bias = None if logit_bias_ref is None else rounded(logit_bias_ref[0, 0], dtype)

    sums: dict[tuple[int, int], list[Tensor]] = {}
    for b, h, h_k in programs:
        one = _Head(scale, use_causal_mask, window, bias, dtype, mixed)
        q, dy = rounded(q_ref[b, h].float() * scale, dtype), dy_ref[b, h].float()
        k, v = k_ref[b, h_k].float(), v_ref[b, h_k].float()
        lse = rounded(lse_ref[b, h], mixed).T.flatten()
        delta = rounded(rounded(dy * o_ref[b, h].float(), mixed).sum(0), mixed)
        sink = None if sinks is None else float(rounded(sinks[b, h], mixed))
        total_q, total_sink = torch.zeros_like(q), torch.zeros(())
        totals = sums.setdefault((b, h_k), [torch.zeros_like(k), torch.zeros_like(v)])
        # Keys past the last whole tile are left out.
        for start in range(0, k.shape[1] // tile * tile, tile):
            keys = slice(start, start + tile)
            rows, dscores, weights, of_sink = one.tile(keys, q, k, v, dy, lse, delta, sink)
            share = rounded(k[:, keys] @ dscores.T * scale, dtype)
            total_q[:, rows] = rounded(total_q[:, rows] + share, mixed)
            totals[0][:, keys] += q[:, rows] @ dscores
            totals[1][:, keys] += dy[:, rows] @ weights
            total_sink = total_sink + of_sink
            dk[b, h_k, :, keys], dv[b, h_k, :, keys] = (total[:, keys].to(dtype) for total in totals)
        dq[b, h] = total_q.to(dtype)
        if dsinks is not None:
            dsinks[b, h] = total_sink.to(mixed)
    return (dq, dk, dv) if dsinks is None else (dq, dk, dv, dsinks)


@dataclass(frozen=True)
class _Head:
    scale: float
    causal: bool
    window: int
    bias: Tensor | None
    dtype: torch.dtype
    mixed: torch.dtype

    def tile(
        self, keys: slice, q: Tensor, k: Tensor, v: Tensor, dy: Tensor, lse: Tensor, delta: Tensor, sink: float | None
    ) -> tuple[slice, Tensor, Tensor, Tensor]:
        """Which queries see a tile of keys, the gradients of the scores and the weights there, and of the sink."""
        rows = self._rows(keys, q.shape[1])
        scores = q[:, rows].T @ k[:, keys]
        if self.bias is not None:
            scores = scores + self.bias[rows, keys]
        if self.causal:
            row, key = torch.arange(rows.start, rows.stop)[:, None], torch.arange(keys.start, keys.stop)
            seen = (key <= row) & (key > row - self.window) if self.window > 0 else key <= row
            scores = torch.where(seen, scores, _LOW_BACKWARD)
        scores = rounded(scores, self.dtype)
        weights = rounded(torch.exp(scores - lse[rows, None]), self.dtype)
        dweights = rounded(dy[:, rows].T @ v[:, keys], self.dtype)
        dscores = rounded((dweights - delta[rows, None]) * weights, self.dtype)
        of_sink = torch.zeros(())
        if sink is not None:
            of_sink = -((dweights * weights).sum(1) * torch.exp(sink - lse[rows])).sum()
        return rows, dscores, weights, of_sink

    def _rows(self, keys: slice, seqlen_q: int) -> slice:
        """The tiles of queries that are computed against a tile of keys: those from its first key on."""
        if not self.causal:
            return slice(0, seqlen_q)
        stop = min(seqlen_q, keys.stop - 1 + self.window) if self.window > 0 else seqlen_q
        return slice(min(keys.start, seqlen_q), max(-(-stop // PMAX) * PMAX, min(keys.start, seqlen_q)))


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
