"""attention_bwd of the NKI library, as read at commit d2ad3a5 of 2026-04-13 (SDK 2.29)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from xattn_elsewhere.nki.standin.kernel import PMAX, Grid, Kernel, check_cores, nki_assert, rounded, unwritten

_LOW = torch.finfo(torch.float32).min
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
    nheads_k, seqlen_k = k_ref.shape[1], k_ref.shape[3]
    _check(q_ref, k_ref, v_ref, o_ref, dy_ref, lse_ref, sinks_ref, use_causal_mask, window)
    scale = softmax_scale or 1.0 / math.sqrt(headdim)  # 0.0 is taken for None
    seen = _seen(seqlen_q, seqlen_k, use_causal_mask, min(window, seqlen_k))
    dtype = q_ref.dtype
    mixed = torch.float32 if mixed_precision else dtype

    dq, dk, dv = (unwritten(x.shape, x.dtype) for x in (q_ref, k_ref, v_ref))
    dsinks = None if sinks_ref is None else torch.zeros_like(sinks_ref)
    for b in range(batch):
        for h_k in range(nheads_k):
            sums = [torch.zeros(headdim, seqlen_k) for _ in range(2)]
            group = nheads // nheads_k
            for h in range(h_k * group, (h_k + 1) * group):
                # Tiles of (seqlen, 128 // ...) in which query i is at [i % 128, i // 128].
                lse = rounded(lse_ref[b, h], mixed).T.flatten()
                q, dy = rounded(q_ref[b, h].float() * scale, dtype), dy_ref[b, h].float()
                k, v = k_ref[b, h_k].float(), v_ref[b, h_k].float()
                delta = rounded(rounded(dy * o_ref[b, h].float(), dtype).sum(0), mixed)
                weights = rounded(torch.exp(torch.where(seen, q.T @ k, _LOW) - lse[:, None]), dtype)
                dscores = rounded((dy.T @ v - delta[:, None]) * weights, dtype)
                dq[b, h] = _by_tiles(k, dscores, scale, mixed, dtype)
                for total, left, right in zip(sums, (q, dy), (dscores, weights), strict=True):
                    _add_by_tiles(total, left, right, mixed)
                if dsinks is not None and sinks_ref is not None:
                    logits = sinks_ref[b, h].reshape(1, -1).float()
                    share = rounded(torch.exp(rounded(logits, mixed) - lse[:, None]), mixed)
                    dsinks[b, h] = -(share * delta[:, None]).sum(0).reshape(sinks_ref[b, h].shape)
            dk[b, h_k], dv[b, h_k] = sums[0].to(dk.dtype), sums[1].to(dv.dtype)
    return (dq, dk, dv) if dsinks is None else (dq, dk, dv, dsinks)


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


def _seen(seqlen_q: int, seqlen_k: int, causal: bool, window: int) -> Tensor:
    row, key = torch.arange(seqlen_q)[:, None], torch.arange(seqlen_k)
    if not causal:
        return torch.ones(seqlen_q, seqlen_k, dtype=torch.bool)
    return (key <= row) & (key > row - window) if window else key <= row


def _by_tiles(k: Tensor, dscores: Tensor, scale: float, mixed: torch.dtype, dtype: torch.dtype) -> Tensor:
    """dq (headdim, seqlen_q): a sum over tiles of keys, which lies in its own dtype between two sections."""
    seqlen_k = k.shape[1]
    tile = min(_K_TILE, seqlen_k)
    total = torch.zeros(k.shape[0], dscores.shape[0])
    for start in range(0, seqlen_k, tile):
        keys = slice(start, start + tile)
        before = rounded(total, dtype) if start and start % _SECTION == 0 else total
        total = rounded(k[:, keys] @ dscores[:, keys].T * scale + before, mixed)
    return total.to(dtype)


def _add_by_tiles(total: Tensor, left: Tensor, right: Tensor, mixed: torch.dtype) -> None:
    """Add left (headdim, seqlen_q) @ right (seqlen_q, seqlen_k), four tiles of queries at a time."""
    for start in range(0, left.shape[1], 4 * PMAX):
        rows = slice(start, start + 4 * PMAX)
        total.copy_(rounded(total + left[:, rows] @ right[rows], mixed))
