"""Attention in blocks of matmuls, for what torch's fused kernels lack: softcap, the gradient of a bias, gradients
through lse. Memory is one block of scores, and the backward pass computes them again."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from xattn_sdpa.attention.problem import Problem, cut, zero_result
from xattn_sdpa.attention.tiling import Tile, tiles

# Scores in a block. On a CPU 8 MB in float32, the size at which the caches served the passes over them best; on a GPU
# 256 MB, which hides the launches.
_BLOCK, _BLOCK_GPU = 2**21, 2**26
# Elements that oneDNN takes at a time: 512 KB in float32 stay in the caches, and the allocator keeps their memory; from
# 2 MB on each piece was paid in page faults, several times the tanh.
_PIECE = 2**17
# Fewer elements than this are not worth its 30 us a call.
_LEAST = 2**15


@dataclass(frozen=True)
class _Block:
    """The operands of one batch row, some key-value heads and one tile: q (heads, group * rows, headdim), k and v
    (heads, keys, headdim), all wide. hidden: as `Problem.hidden`, for these heads; no key before hidden_from is."""

    b: int
    heads: slice
    tile: Tile
    q: Tensor
    k: Tensor
    v: Tensor
    hidden: Tensor | None
    hidden_from: int


def _blocks(problem: Problem) -> Iterator[_Block]:
    batch, seqlen_q, nheads, _ = problem.q.shape
    seqlen_k, nheads_k = problem.k.shape[1:3]
    group = problem.group
    block, most = (_BLOCK, 256) if problem.q.device.type == "cpu" else (_BLOCK_GPU, 4096)
    rows = min(seqlen_q, max(16, min(most, block // max(1, nheads * seqlen_k))))
    step = max(1, min(nheads_k, block // max(1, group * rows * seqlen_k)))
    plan = list(tiles(problem.geometry, max(rows, 1), False))
    for b in range(batch):
        for first in range(0, nheads_k, step):
            heads = slice(first, min(first + step, nheads_k))
            k = problem.k[b, :, heads].transpose(0, 1).to(problem.wide)
            v = problem.v[b, :, heads].transpose(0, 1).to(problem.wide)
            for tile in plan:
                keys = slice(tile.key, tile.key_end)
                hidden = problem.hidden(tile)
                if hidden is not None:
                    hidden = _part(hidden, b, heads, group)
                q = _rows(problem.q[b, tile.row : tile.row_end], heads, group, problem.wide)
                hidden_from = 0
                if problem.left is None and problem.right is not None and not problem.masked:
                    hidden_from = max(0, tile.row + problem.offset + problem.right + 1 - tile.key)
                yield _Block(b, heads, tile, q, k[:, keys], v[:, keys], hidden, hidden_from)


def _rows(x: Tensor, heads: slice, group: int, dtype: torch.dtype) -> Tensor:
    """(rows, nheads, dim) -> (heads, group * rows, dim): a key-value head's queries in one matrix."""
    x = x[:, heads.start * group : heads.stop * group].to(dtype)
    grouped: Tensor = x.unflatten(1, (-1, group))
    return grouped.permute(1, 2, 0, 3).flatten(1, 2)


def _unrows(x: Tensor, group: int) -> Tensor:
    """(heads, group * rows, dim) -> (rows, heads * group, dim)."""
    grouped: Tensor = x.unflatten(1, (group, -1))
    return grouped.permute(2, 0, 1, 3).flatten(1, 2)


def _part(x: Tensor, b: int, heads: slice, group: int) -> Tensor:
    """A (batch or 1, nheads or 1, rows, keys) tensor for one block: (heads or 1, group or 1, rows, keys)."""
    x = x[0] if x.shape[0] == 1 else x[b]
    if x.shape[0] == 1:
        return x.unsqueeze(0)
    x = x[heads.start * group : heads.stop * group]
    return x.view(heads.stop - heads.start, group, *x.shape[1:])


def _fast_tanh(x: Tensor) -> None:
    """x.tanh_() for a contiguous x. In float32 on a CPU by oneDNN: on an AMD Zen 5 torch's own took 2.7 times as long.
    Relative errors were up to 8e-8, and torch's up to 6e-8."""
    served = x.device.type == "cpu" and x.dtype == torch.float32 and torch.backends.mkldnn.is_available()
    if not served or x.numel() < _LEAST:
        x.tanh_()
        return
    for piece in x.view(-1).split(_PIECE):
        piece.copy_(piece.to_mkldnn().tanh_().to_dense())


def _fast_exp(x: Tensor) -> Tensor:
    """x.exp_() by way of exp2: on an AMD Zen 5 torch's exp took four times as long as its exp2. The product rounds once
    more, which the gradients would show, so the backward pass has exp itself."""
    return x.mul_(math.log2(math.e)).exp2_()


class _Scores:
    """Computes the scores of blocks, in memory that the next block of the size uses again: a fresh block costs page
    faults for every pass."""

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._memory: dict[str, Tensor] = {}

    def room(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """An uninitialised tensor that is valid until the next call with this name."""
        size = math.prod(shape)
        if name not in self._memory or self._memory[name].numel() < size:
            self._memory[name] = self._problem.q.new_empty(size, dtype=self._problem.wide)
        return self._memory[name][:size].view(shape)

    def compute(self, block: _Block, keep_tanh: bool) -> tuple[Tensor, Tensor | None]:
        """Scores after softcap, bias, ALiBi and masks, (heads, group * rows, keys), and tanh where it is kept."""
        problem, cap = self._problem, self._problem.softcap
        scores = self.room("scores", (*block.q.shape[:2], block.k.shape[1]))
        alpha = problem.scale if cap is None else problem.scale / cap
        torch.baddbmm(scores, block.q, block.k.transpose(1, 2), beta=0, alpha=alpha, out=scores)
        tanh = None
        if cap is not None:
            _fast_tanh(scores)
            if keep_tanh:
                tanh = self.room("tanh", tuple(scores.shape)).copy_(scores)
            scores.mul_(cap)
        grouped = scores.unflatten(1, (problem.group, -1))
        alibi = problem.alibi(block.tile)
        if problem.bias is not None:
            grouped += _part(cut(problem.bias, block.tile), block.b, block.heads, problem.group).to(problem.wide)
        if alibi is not None:
            grouped += _part(alibi, block.b, block.heads, problem.group)
        if block.hidden is not None:
            grouped[..., block.hidden_from :].masked_fill_(block.hidden[..., block.hidden_from :], -torch.inf)
        return scores, tanh


def forward(problem: Problem) -> tuple[Tensor, Tensor]:
    """As `fused.forward`."""
    group = problem.group
    out, lse = zero_result(problem)
    scoring = _Scores(problem)
    for block in _blocks(problem):
        weights, _ = scoring.compute(block, keep_tanh=False)
        top = weights.amax(-1, keepdim=True)
        dead = None
        if block.hidden is not None:
            rows = block.tile.row_end - block.tile.row
            dead = block.hidden.all(-1).expand(weights.shape[0], group, rows).reshape(weights.shape[0], -1, 1)
            top.masked_fill_(dead, 0.0)
        _fast_exp(weights.sub_(top))
        total = weights.sum(-1, keepdim=True)
        part_lse = total.log() + top
        if dead is not None:
            part_lse.masked_fill_(dead, -torch.inf)
            total.masked_fill_(dead, 1.0)
        part = torch.bmm(weights, block.v).div_(total)
        rows_place, heads = _places(block, group)
        out[block.b, rows_place, heads] = _unrows(part, group).to(out.dtype)
        lse[block.b, heads, rows_place] = part_lse.view(-1, block.tile.row_end - block.tile.row)
    return out, lse


def _places(block: _Block, group: int) -> tuple[slice, slice]:
    """Where a block lies among the query rows and the query heads."""
    return slice(block.tile.row, block.tile.row_end), slice(block.heads.start * group, block.heads.stop * group)


def backward(
    problem: Problem,
    dout: Tensor,
    dlse: Tensor | None,
    out: Tensor,
    lse: Tensor,
    dq: Tensor,
    dk: Tensor,
    dv: Tensor,
    dbias: Tensor | None,
) -> None:
    """As `fused.backward`; dlse is (batch, nheads, seqlen_q) or None, dbias as dq or None."""
    group = problem.group
    # d score = weight * (dout . v - delta), and lse adds its own weight times dlse.
    delta = (dout.to(problem.wide) * out.to(problem.wide)).sum(-1).transpose(1, 2)
    if dlse is not None:
        delta = delta - dlse
    lse = lse.masked_fill(lse == -torch.inf, torch.inf)
    scoring = _Scores(problem)
    for block in _blocks(problem):
        rows, heads = _places(block, group)
        keys = slice(block.tile.key, block.tile.key_end)
        scores, tanh = scoring.compute(block, keep_tanh=True)
        flat = (scores.shape[0], scores.shape[1], 1)
        weights = scores.sub_(lse[block.b, heads, rows].reshape(flat)).exp_()
        do = _rows(dout[block.b, rows], block.heads, group, problem.wide)
        dv[block.b, keys, block.heads] += torch.bmm(weights.transpose(1, 2), do).transpose(0, 1)
        dscores = torch.bmm(do, block.v.transpose(1, 2), out=scoring.room("dscores", tuple(scores.shape)))
        dscores.sub_(delta[block.b, heads, rows].reshape(flat)).mul_(weights)
        if dbias is not None:
            _add_to_bias(dbias, dscores, block, group)
        if tanh is not None:
            dscores.mul_(tanh.square_().neg_().add_(1.0))
        dscores.mul_(problem.scale)
        dq[block.b, rows, heads] += _unrows(torch.bmm(dscores, block.k), group)
        dk[block.b, keys, block.heads] += torch.bmm(dscores.transpose(1, 2), block.q).transpose(0, 1)


def _add_to_bias(dbias: Tensor, dscores: Tensor, block: _Block, group: int) -> None:
    """Sum a block's score gradients over the dimensions that the bias broadcasts."""
    rows, heads = _places(block, group)
    grad = dscores.unflatten(1, (group, -1)).flatten(0, 1).unsqueeze(0)
    place = (
        slice(None) if dbias.shape[0] == 1 else slice(block.b, block.b + 1),
        slice(None) if dbias.shape[1] == 1 else heads,
        slice(None) if dbias.shape[2] == 1 else rows,
        slice(None) if dbias.shape[3] == 1 else slice(block.tile.key, block.tile.key_end),
    )
    dbias[place] += grad.sum_to_size(dbias[place].shape)
