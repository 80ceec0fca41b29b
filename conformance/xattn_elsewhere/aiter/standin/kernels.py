"""What a kernel computes for one head of one batch row: float32, with the probabilities rounded as a flash kernel does.

Facts of CK are from its pipelines (ck_tile/ops/fmha) as aiter builds them, with CK_TILE_FMHA_FWD_FAST_EXP2=1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Head:
    """masked: the kernel was built with a mask. left, right: of the mask, from the bottom right; -1 is open.
    sink_tokens: the first keys, which no left side hides. added: to the scaled scores, (seqlen_q, seqlen_k).
    sink: its natural logit. kept: what dropout leaves, (seqlen_q, seqlen_k).
    unwritten: nothing is known of lse where a row sees no key, so it is NaN.
    """

    scale: float
    masked: bool = False
    left: int = -1
    right: int = -1
    sink_tokens: int = 0
    added: Tensor | None = None
    softcap: float = 0.0
    sink: float | None = None
    dropout_p: float = 0.0
    kept: Tensor | None = None
    unwritten: bool = False

    def visible(self, seqlen_q: int, seqlen_k: int) -> Tensor | None:
        if not self.masked:
            return None
        row = torch.arange(seqlen_q)[:, None] + seqlen_k - seqlen_q
        key = torch.arange(seqlen_k)[None, :]
        seen = torch.ones(seqlen_q, seqlen_k, dtype=torch.bool)
        if self.left >= 0:
            seen &= (key >= row - self.left) | (key < self.sink_tokens)
        if self.right >= 0:
            seen &= key <= row + self.right
        return seen

    def scores(self, q: Tensor, k: Tensor) -> tuple[Tensor, float]:
        """Scores with -inf where a key is hidden, and the factor that is still to come: without anything to add, CK
        hides keys first and scales in the exponent."""
        raw = q.float() @ k.float().T
        factor = self.scale
        if self.added is not None or self.softcap > 0:
            raw, factor = raw * self.scale, 1.0
        if self.softcap > 0:
            raw = self.softcap * torch.tanh(raw / self.softcap)
        if self.added is not None:
            raw = raw + self.added
        seen = self.visible(*raw.shape)
        return raw if seen is None else raw.masked_fill(~seen, -math.inf), factor


def forward(head: Head, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """out (seqlen_q, headdim_v) in float32, and lse (seqlen_q)."""
    raw, factor = head.scores(q, k)
    start = -math.inf if head.sink is None else head.sink / factor if factor != 0 else math.nan
    top = raw.amax(1).clamp_min(start) if head.sink is not None else raw.amax(1)
    safe = torch.where(top == -math.inf, 0.0, top) if head.masked or head.added is not None else top
    weights = torch.exp(factor * raw - factor * safe[:, None])
    total = weights.sum(1) + (0.0 if head.sink is None else torch.exp(factor * start - factor * safe))
    lse = factor * top + torch.log(total)
    if head.kept is not None:
        weights = weights * head.kept / (1 - head.dropout_p)
    out = weights.to(v.dtype).float() @ v.float()
    # Without a mask no row is looked at for having seen nothing.
    over = torch.where(total == 0, 0.0, 1 / total) if head.masked else 1 / total
    out = out * over[:, None]
    if head.unwritten:
        empty = torch.isneginf(raw).all(1)
        lse = torch.where(empty, math.nan, lse)
    return out, lse


def backward(
    head: Head, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, dout: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """dq, dk, dv, and the gradient of the scores (seqlen_q, seqlen_k), in float32. Nobody tells it of a softcap."""
    raw, factor = head.scores(q, k)
    safe = torch.where(lse == -math.inf, 0.0, lse)
    weights = torch.exp(factor * raw - safe[:, None])
    share = dout.float() @ v.float().T
    used = weights
    if head.kept is not None:
        used = weights * head.kept / (1 - head.dropout_p)
        share = share * head.kept / (1 - head.dropout_p)
    delta = (dout.float() * out.float()).sum(1, keepdim=True)
    dscores = weights * (share - delta)
    rounded = dscores.to(q.dtype).float()
    dq = head.scale * (rounded @ k.float())
    dk = head.scale * (rounded.T @ q.float())
    dv = used.to(q.dtype).float().T @ dout.float()
    return dq, dk, dv, dscores
