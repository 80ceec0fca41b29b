"""Attention by torch's fused CPU kernel, tile by tile, merged through the log-sum-exp: nothing S x S."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from xattn.plugin.geometry import Geometry
from xattn_sdpa.attention.direct import FEW_KEYS
from xattn_sdpa.attention.problem import Problem, cut, empty_result, zero_result
from xattn_sdpa.attention.tiling import Tile, tiles

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


# Numbers in the explicit bias of a tile: 16 MB in float32.
_BIAS = 2**22


class _Extra(NamedTuple):
    """What a tile needs beside q, k, v. bias: added to the scores, (batch or 1, nheads or 1, rows or 1, keys).
    shift: what bias adds to the lse beyond the contract, (batch or 1, nheads, rows). dead: rows without keys."""

    bias: Tensor | None
    shift: Tensor | None
    dead: Tensor | None


def _tiles(problem: Problem) -> list[Tile]:
    seqlen_q, seqlen_k = problem.q.shape[1], problem.k.shape[1]
    causal = problem.left is None and problem.right == 0 and not problem.masked
    if problem.alibi_slopes is not None and causal:
        # Each key takes ALiBi as one number, counted from the tile's first row, so that its rounding grows with the
        # rows of a tile and not with seqlen_k. Fewer rows are more exact and slower: in float32 at S=2048 and 32 heads
        # 8e-5 and 1.2 times the cost of plain causal with 1,024, 2e-5 and 1.3 times with 256 (reference: 1e-6).
        rows = 1024
    elif problem.alibi_slopes is not None or problem.masked:
        rows = max(16, min(512, _BIAS // max(1, problem.q.shape[2] * seqlen_k)))
    elif problem.left is not None:
        # A tile reads rows + left + right keys: few rows waste few of them, many fill the kernel.
        # float32 takes small tiles at no loss; the half types' kernel packs a tile's keys, and wants more rows for it.
        small = problem.left < 128 or (problem.left < 512 and problem.q.dtype == torch.float32)
        rows = 64 if small else 128 if problem.left < 512 else 256
    else:
        rows = max(seqlen_q, 1)
    split = not problem.masked and (problem.alibi_slopes is None or causal)
    return list(tiles(problem.geometry, rows, split))


def only_tile(geometry: Geometry) -> Tile | None:
    """The tile that is all of a call without masks and ALiBi; None where there are more, or rows without one."""
    found = list(tiles(geometry.opened(), geometry.seqlen_q, True)) if geometry.seqlen_q else []
    whole = len(found) == 1 and found[0].kind != "masked" and (found[0].row, found[0].row_end) == (0, geometry.seqlen_q)
    return found[0] if whole else None


def _with_extras(problem: Problem, found: list[Tile]) -> Iterator[tuple[Tile, _Extra]]:
    # Tiles of one form at different places have the same extras. They follow each other, so the last tile's are kept.
    last: object = None
    for tile in found:
        shape = (tile.kind, tile.row_end - tile.row, tile.key_end - tile.key, tile.row - tile.key)
        if problem.masked or shape != last:
            extra, last = _extra(problem, tile), shape
        yield tile, extra


def _extra(problem: Problem, tile: Tile) -> _Extra:
    slopes = problem.slope_rows()
    before = tile.kind == "causal" or (tile.kind == "full" and tile.key_end - 1 <= tile.row + problem.offset)
    if slopes is not None and before and not problem.masked:
        # -slope * (i + offset - j) is slope * (j - j0) less a number of the row alone, which the softmax cancels.
        j0 = tile.row + problem.offset
        j = torch.arange(tile.key, tile.key_end, device=problem.q.device, dtype=problem.wide)
        i = torch.arange(tile.row_end - tile.row, device=problem.q.device, dtype=problem.wide)
        return _Extra(slopes * (j - j0), slopes.squeeze(-1) * i, None)
    bias = None if problem.bias is None else cut(problem.bias, tile).to(problem.wide)
    alibi = problem.alibi(tile)
    if alibi is not None:
        bias = alibi if bias is None else bias + alibi
    hidden = None if tile.kind == "causal" else problem.hidden(tile)
    if hidden is None:
        return _Extra(bias, None, None)
    if bias is None:
        bias = torch.zeros((), dtype=problem.wide, device=hidden.device)
    shape = (*torch.broadcast_shapes(hidden.shape, bias.shape)[:3], tile.key_end - tile.key)
    bias = bias.expand(shape).masked_fill(hidden, -torch.inf)
    dead = hidden.all(-1)
    return _Extra(bias, None, dead if bool(dead.any()) else None)


def forward(problem: Problem) -> tuple[Tensor, Tensor]:
    """out (batch, seqlen_q, nheads, headdim_v) and lse (batch, nheads, seqlen_q), wide, without the sinks."""
    seqlen_q = problem.q.shape[1]
    out = lse = previous = None
    found = _tiles(problem)
    # Rows that no tile has stay as they are made: 0 and -inf. Where there are none, making them so is wasted.
    covered = sum(end - row for row, end in {(tile.row, tile.row_end) for tile in found}) == seqlen_q
    with _flushing_subnormals(problem):
        for tile, extra in _with_extras(problem, found):
            part, part_lse = forward_tile(problem.q, problem.k, problem.v, problem.scale, tile, extra.bias)
            if extra.shift is not None:
                part_lse = part_lse - extra.shift
            if extra.dead is not None:
                # The kernel gives 0 for a row without keys, which is right, and 0 for its lse, which is not.
                part_lse = part_lse.masked_fill(extra.dead, -torch.inf)
            if out is None or lse is None:
                if tile.row_end - tile.row == seqlen_q:
                    out, lse, previous = part.contiguous(), part_lse, tile
                    continue
                out, lse = (empty_result if covered else zero_result)(problem)
            rows_out, rows_lse = out[:, tile.row : tile.row_end], lse[:, :, tile.row : tile.row_end]
            if previous is not None and previous.row == tile.row:
                _merge(rows_out, rows_lse, part, part_lse)
            else:
                rows_out.copy_(part)
                rows_lse.copy_(part_lse)
            previous = tile
    return zero_result(problem) if out is None or lse is None else (out, lse)


def _merge(out: Tensor, lse: Tensor, part: Tensor, part_lse: Tensor) -> None:
    """Add the result of more keys to rows that have some already."""
    # Both weights to full relative precision. The complement of a weight near 1 is the noise of its rounding: times a
    # part that has almost no weight it would drown a small result.
    empty = part_lse == -torch.inf
    share, rest = torch.sigmoid(part_lse - lse).masked_fill_(empty, 0.0), torch.sigmoid(lse - part_lse)
    share, rest = (x.transpose(1, 2).unsqueeze(-1) for x in (share, rest.masked_fill_(empty, 1.0)))
    if out.dtype == share.dtype:
        out.mul_(rest).addcmul_(part, share)
    else:
        out.copy_((out * rest).add_(part * share))
    lse.copy_(torch.logaddexp(lse, part_lse))


@contextmanager
def _flushing_subnormals(problem: Problem) -> Iterator[None]:
    """ALiBi drives far keys' weights through the subnormal range, where x86 multiplies 100 times slower: 1.3 times the
    whole call on an Intel Xeon. The flag is this thread's alone and its old state comes back."""
    if problem.alibi_slopes is None:
        yield
        return
    flushed = sys.float_info.min / 2 == 0.0
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(flushed)


def _weight(part: Tensor, merged: Tensor, dtype: torch.dtype) -> Tensor:
    """exp(part - merged) as (batch, rows, nheads, 1); 0 where the part is empty."""
    weight = torch.exp(part - merged).masked_fill_(part == -torch.inf, 0.0)
    return weight.transpose(1, 2).unsqueeze(-1).to(dtype)


def forward_tile(
    q: Tensor, k: Tensor, v: Tensor, scale: float, tile: Tile, bias: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """out (batch, rows, nheads, headdim_v) and lse (batch, nheads, rows) of a tile of a whole call's q, k and v."""
    q, k, v = _part(q, tile.row, tile.row_end), _part(k, tile.key, tile.key_end), _part(v, tile.key, tile.key_end)
    batch, seqlen_q, nheads, headdim = q.shape
    headdim_v, group = v.shape[3], nheads // k.shape[2]
    if headdim != headdim_v:
        q, k, v = _same_width(q, k, v)
    if seqlen_q == 1 and group > 1:
        # The query heads of a group as the rows of one head: K and V are read once a group, and nothing is copied.
        q = q.view(batch, k.shape[2], group, q.shape[3]).transpose(1, 2)
        if bias is not None and bias.shape[1] != 1:
            bias = bias.reshape(bias.shape[0], k.shape[2], group, bias.shape[3])
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    causal = tile.kind == "causal"
    out, lse = _forward(q, k, v, is_causal=causal, attn_mask=bias, scale=scale)
    if bias is None and k.shape[2] < FEW_KEYS and not bool(lse.all()):
        # 0 is how the kernel gives an lse whose scores are all NaN: see FEW_KEYS. It may be right, too.
        zeros = q.new_zeros(1, 1, 1, k.shape[2])
        out, lse = _forward(q, k, v, is_causal=causal, attn_mask=zeros, scale=scale)
    out = out.transpose(1, 2)
    if out.shape[2] != nheads:
        out, lse = out.transpose(1, 2).reshape(batch, 1, nheads, out.shape[3]), lse.reshape(batch, nheads, 1)
    return out if headdim == headdim_v else out[..., :headdim_v], lse


def _part(x: Tensor, first: int, end: int) -> Tensor:
    """Rows or keys [first, end)."""
    return x if end - first == x.shape[1] else x[:, first:end]


def _same_width(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The kernel wants headdim == headdim_v: zeros make it so, and change no score and no output."""
    width = max(q.shape[3], v.shape[3])
    return _pad(q, width), _pad(k, width), _pad(v, width)


def _pad(x: Tensor, width: int) -> Tensor:
    return x if x.shape[3] == width else F.pad(x, (0, width - x.shape[3]))


def backward(problem: Problem, dout: Tensor, out: Tensor, lse: Tensor, dq: Tensor, dk: Tensor, dv: Tensor) -> None:
    """Add the gradients of q, k and v to dq, dk, dv, given as zeros in the wide dtype.

    out and lse are the whole call's, sinks included: a tile's weights are exp(score - lse), whatever else the softmax
    ran over, so the kernel's own backward is exact for every tile.
    """
    # exp(-inf - -inf) is NaN: a row without keys has weights 0.
    lse = lse.masked_fill(lse == -torch.inf, torch.inf)
    with _flushing_subnormals(problem):
        for tile, extra in _with_extras(problem, _tiles(problem)):
            rows, keys = slice(tile.row, tile.row_end), slice(tile.key, tile.key_end)
            tile_lse = lse[:, :, rows]
            if extra.shift is not None:
                tile_lse = tile_lse + extra.shift
            q, k, v = _same_width(problem.q[:, rows], problem.k[:, keys], problem.v[:, keys])
            for heads in _summed_apart(problem):
                bias = extra.bias
                grads = _backward(
                    _pad(dout[:, rows, heads], v.shape[3]).transpose(1, 2),
                    q[:, :, heads].transpose(1, 2),
                    k.transpose(1, 2),
                    v.transpose(1, 2),
                    _pad(out[:, rows, heads], v.shape[3]).transpose(1, 2),
                    tile_lse[:, heads].contiguous(),
                    0.0,
                    tile.kind == "causal",
                    attn_mask=bias if bias is None or bias.shape[1] == 1 else bias[:, heads],
                    scale=problem.scale,
                )
                dq[:, rows, heads] += grads[0].transpose(1, 2)[..., : dq.shape[3]]
                for total, grad in ((dk, grads[1]), (dv, grads[2])):
                    total[:, keys] += grad.transpose(1, 2)[..., : total.shape[3]]


def _summed_apart(problem: Problem) -> list[slice]:
    """The query heads by calls of the kernel's backward, which adds up the shares of a group's heads in the dtype of k:
    with 71 heads in bfloat16 a gradient of 2.22 came out as 2.31. In 16 bits each call has one head of every group, and
    their gradients are added up in float32; it takes as long."""
    if problem.group == 1 or problem.q.dtype == problem.wide:
        return [slice(None)]
    return [slice(member, None, problem.group) for member in range(problem.group)]
