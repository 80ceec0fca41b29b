"""What every op of attention comes to: a softmax over scores, one line of the contract after the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from xattn.plugin.symbolic import holds, static


@dataclass(frozen=True)
class Scores:
    """What is done to q @ k.T before the softmax.

    visible: which keys each query sees, bool. added: bias and ALiBi, as far as there are. All broadcastable to (batch,
    nheads, seqlen_q, seqlen_k). sinks: (nheads,), or None.
    """

    scale: float
    softcap: float | None
    visible: Tensor
    added: Sequence[Tensor] = ()
    sinks: Tensor | None = None


def wide(tensor: Tensor) -> torch.dtype:
    """The dtype of scores and sums."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def attend(q: Tensor, k: Tensor, v: Tensor, how: Scores, dropout_p: float | None = None) -> tuple[Tensor, Tensor]:
    """q: (batch, seqlen_q, nheads, headdim), k, v: (batch, seqlen_k, nheads_k, headdim or headdim_v).

    Returns out (batch, seqlen_q, nheads, headdim_v), contiguous, in the dtype of q, and lse (batch, nheads, seqlen_q)
    float32.
    """
    batch, seqlen_q, nheads, headdim = q.shape
    seqlen_k, nheads_k, headdim_v = v.shape[1:]
    group, visible = nheads // nheads_k, how.visible
    if not static(group):
        # torch.compile takes three times as long over sizes that are quotients. A graph of any number of heads has a
        # key-value head for each query head.
        head = torch.arange(nheads, device=q.device) // group
        k, v, nheads_k, group = k.index_select(2, head), v.index_select(2, head), nheads, 1

    # A key that no query sees may hold NaN, and 0 * NaN is NaN: take it out before any arithmetic. So may a query that
    # sees no key, where tokens are packed.
    seen = visible.any(2)  # (batch or 1, nheads or 1, seqlen_k)
    if seen.shape[1] != 1:
        seen = seen.unflatten(1, (nheads_k, group)).any(2)
    seen = seen.transpose(1, 2).unsqueeze(3)  # (batch or 1, seqlen_k, nheads_k or 1, 1)
    keys = k.to(wide(q)).masked_fill(~seen, 0.0)
    values = v.to(wide(q)).masked_fill(~seen, 0.0)
    dead = ~visible.any(-1, keepdim=True)  # (batch or 1, nheads or 1, seqlen_q or 1, 1)
    queries = q.to(wide(q)).masked_fill(dead.transpose(1, 2), 0.0)

    # The query heads of one key-value head stand one below the other: (batch, nheads_k, group * seqlen_q, ...).
    queries = queries.transpose(1, 2).reshape(batch, nheads_k, group * seqlen_q, headdim)
    scores = (queries @ keys.permute(0, 2, 3, 1)).view(batch, nheads, seqlen_q, seqlen_k) * how.scale
    if how.softcap is not None:
        scores = how.softcap * torch.tanh(scores / how.softcap)
    for term in how.added:
        scores = scores + term.to(wide(q))
    scores = scores.masked_fill(~visible, -torch.inf)

    # Softmax by hand: the sink is a term without a value, and a row without keys is 0 by its masks, not by its logits.
    top = scores.detach()
    if not holds(seqlen_k > 0):  # one more key, for there may be none to take the largest of
        top = F.pad(top, (0, 1), value=-torch.inf)
    top = top.amax(-1, keepdim=True)
    top = top.masked_fill(dead, -torch.inf)
    if how.sinks is not None:
        sink = how.sinks.to(wide(q)).view(1, nheads, 1, 1)
        top = torch.maximum(top, sink.detach())
    top = top.masked_fill(top == -torch.inf, 0.0)
    weights = torch.exp(scores - top)
    total = weights.sum(-1, keepdim=True)
    if how.sinks is not None:
        total = total + torch.exp(sink - top)
    empty = dead & (total == 0)  # neither a key nor a sink
    total = total.masked_fill(empty, 1.0)
    probabilities = weights / total
    if dropout_p is not None:
        probabilities = F.dropout(probabilities, dropout_p)
    out = probabilities.view(batch, nheads_k, group * seqlen_q, seqlen_k) @ values.transpose(1, 2)
    out = out.view(batch, nheads, seqlen_q, headdim_v).transpose(1, 2).to(q.dtype).contiguous()
    lse = (torch.log(total) + top).masked_fill(empty, -torch.inf)
    return out, lse.squeeze(-1).float()


def within(distance: Tensor, band: tuple[int | None, int | None]) -> Tensor:
    """Where a band shows a key, bool. distance: i + off - j."""
    visible = torch.ones_like(distance, dtype=torch.bool)
    left, right = band
    if left is not None:
        visible = visible & (distance <= left)
    if right is not None:
        visible = visible & (distance >= -right)
    return visible
