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
    nheads, seqlen_q, seqlen_k). sinks: (nheads,), or None. in_order: every sum has one order, see `in_order.py`.
    """

    scale: float
    softcap: float | None
    visible: Tensor
    added: Sequence[Tensor] = ()
    sinks: Tensor | None = None
    in_order: bool = False


def wide(tensor: Tensor) -> torch.dtype:
    """The dtype of scores and sums."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


@dataclass(frozen=True)
class _Scored:
    """queries, keys, values: wide, 0 where nobody may look, as `_fold` has them for nheads_k heads. scores: (batch,
    nheads, seqlen_q, seqlen_k), -inf where hidden. slope: what softcap makes of a step of a score, or 1. dead: queries
    that see no key, (batch or 1, nheads or 1, seqlen_q or 1, 1)."""

    nheads_k: int
    queries: Tensor
    keys: Tensor
    values: Tensor
    scores: Tensor
    slope: Tensor | float
    dead: Tensor

    def folded(self, weights: Tensor) -> Tensor:
        """Weights of scores, as the queries are: (batch * nheads_k, group * seqlen_q, seqlen_k)."""
        return weights.view(*self.queries.shape[:2], self.keys.shape[1])


def _fold(x: Tensor, nheads_k: int) -> Tensor:
    """What each key-value head has to do with, the heads of its group one below the other: (batch * nheads_k,
    group * seqlen, headdim)."""
    batch, seqlen, nheads, headdim = x.shape
    return x.transpose(1, 2).reshape(batch * nheads_k, nheads // nheads_k * seqlen, headdim)


def _unfold(x: Tensor, batch: int, nheads: int, seqlen: int) -> Tensor:
    """(batch, seqlen, nheads, headdim) of what is as `_fold` has it; not contiguous."""
    return x.view(batch, nheads, seqlen, x.shape[2]).transpose(1, 2)


def _scored(q: Tensor, k: Tensor, v: Tensor, how: Scores) -> _Scored:
    batch, seqlen_q, nheads, _ = q.shape
    seqlen_k, nheads_k = v.shape[1:3]
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
    unseen = ~seen.transpose(1, 2).unsqueeze(3)  # (batch or 1, seqlen_k, nheads_k or 1, 1)
    keys = _fold(k.to(wide(q)).masked_fill(unseen, 0.0), nheads_k)
    values = _fold(v.to(wide(q)).masked_fill(unseen, 0.0), nheads_k)
    dead = ~visible.any(-1, keepdim=True)
    queries = _fold(q.to(wide(q)).masked_fill(dead.transpose(1, 2), 0.0), nheads_k)

    scores = _product(queries, keys.mT, how.in_order).view(batch, nheads, seqlen_q, seqlen_k) * how.scale
    slope: Tensor | float = 1.0
    if how.softcap is not None:
        tanh = torch.tanh(scores / how.softcap)
        scores, slope = how.softcap * tanh, 1.0 - tanh * tanh
    for term in how.added:
        scores = scores + term.to(wide(q))
    return _Scored(nheads_k, queries, keys, values, scores.masked_fill(~visible, -torch.inf), slope, dead)


def _product(a: Tensor, b: Tensor, in_order: bool) -> Tensor:
    """(n, rows, columns) of (n, rows, terms) and (n, terms, columns). in_order: added up from the first term on, each
    element by itself: a term of 0 changes no bit of it, and the other elements do not either."""
    if not in_order:
        return torch.bmm(a, b)
    total = a.new_zeros(a.shape[0], a.shape[1], b.shape[2])
    for x, y in zip(a.unbind(2), b.unbind(1), strict=True):
        total += x.unsqueeze(2) * y.unsqueeze(1)
    return total


def _sum(x: Tensor, in_order: bool) -> Tensor:
    """Over the last dimension, which stays as 1."""
    if not in_order:
        return x.sum(-1, keepdim=True)
    total = x.new_zeros(x.shape[:-1])
    for term in x.unbind(-1):
        total += term
    return total.unsqueeze(-1)


def attend(q: Tensor, k: Tensor, v: Tensor, how: Scores, dropout_p: float | None = None) -> tuple[Tensor, Tensor]:
    """q: (batch, seqlen_q, nheads, headdim), k, v: (batch, seqlen_k, nheads_k, headdim or headdim_v).

    Returns out (batch, seqlen_q, nheads, headdim_v), contiguous, in the dtype of q, and lse (batch, nheads, seqlen_q)
    float32.
    """
    out, lse = attend_wide(q, k, v, how, dropout_p)
    return out.to(q.dtype).contiguous(), lse.float()


def attend_wide(q: Tensor, k: Tensor, v: Tensor, how: Scores, dropout_p: float | None = None) -> tuple[Tensor, Tensor]:
    """As `attend`, before anything is rounded; out is not contiguous."""
    batch, seqlen_q, nheads, _ = q.shape
    scored = _scored(q, k, v, how)
    scores, dead = scored.scores, scored.dead

    # Softmax by hand: the sink is a term without a value, and a row without keys is 0 by its masks, not by its logits.
    top = scores.detach()
    if not holds(k.shape[1] > 0):  # one more key, for there may be none to take the largest of
        top = F.pad(top, (0, 1), value=-torch.inf)
    top = top.amax(-1, keepdim=True)
    if how.sinks is not None:
        sink = how.sinks.to(wide(q)).view(1, nheads, 1, 1)
        top = torch.maximum(top, sink.detach())
    top = top.masked_fill(top == -torch.inf, 0.0)
    weights = torch.exp(scores - top)
    total = _sum(weights, how.in_order)
    if how.sinks is not None:
        total = total + torch.exp(sink - top)
    empty = dead & (total == 0)  # neither a key nor a sink
    total = total.masked_fill(empty, 1.0)
    probabilities = weights / total
    if dropout_p is not None:
        probabilities = F.dropout(probabilities, dropout_p)
    out = _unfold(_product(scored.folded(probabilities), scored.values, how.in_order), batch, nheads, seqlen_q)
    lse = (torch.log(total) + top).masked_fill(empty, -torch.inf)
    return out, lse.squeeze(-1)


def share(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, how: Scores, dlse: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """dq, dk, dv in the dtypes of q, k, v: what the given keys add to them. Shapes as of `attend`; out and lse may be
    of more keys. dlse: what comes in for lse. Queries that see none of these, or of which lse is -inf, are not read."""
    batch, seqlen_q, nheads, _ = q.shape
    scored = _scored(q, k, v, how)
    none = lse.unsqueeze(-1) == -torch.inf  # (batch, nheads, seqlen_q, 1)
    unread = (scored.dead | none).transpose(1, 2)
    given = [x.to(wide(q)).masked_fill(unread, 0.0) for x in (dout, out)]
    delta = _sum(given[0] * given[1], how.in_order).transpose(1, 2)
    if dlse is not None:
        delta = delta - dlse.unsqueeze(-1)
    grad = _fold(given[0], scored.nheads_k)
    # A query without a key in there has scores of -inf, and -inf - -inf is NaN.
    log = lse.to(wide(q)).unsqueeze(-1).masked_fill(scored.dead | none, torch.inf)
    p = torch.exp(scored.scores - log)
    values = _product(grad, scored.values.mT, how.in_order).view(p.shape)
    scores = scored.folded(p * (values - delta) * scored.slope * how.scale)
    dq = _unfold(_product(scores, scored.keys, how.in_order), batch, nheads, seqlen_q)
    dk = _product(scores.mT, scored.queries, how.in_order)
    dv = _product(scored.folded(p).mT, grad, how.in_order)
    dk, dv = (_unfold(x, batch, scored.nheads_k, k.shape[1]) for x in (dk, dv))
    return dq.to(q.dtype).contiguous(), _of_heads(dk, k), _of_heads(dv, v)


def _of_heads(grad: Tensor, x: Tensor) -> Tensor:
    """The gradient of the key-value heads that there are: `_scored` may have made one for each query head."""
    grouped: Tensor = grad.unflatten(2, (x.shape[2], -1))
    return grouped.sum(3).to(x.dtype)


def within(distance: Tensor, band: tuple[int | None, int | None]) -> Tensor:
    """Where a band shows a key, bool. distance: i + off - j."""
    visible = torch.ones_like(distance, dtype=torch.bool)
    left, right = band
    if left is not None:
        visible = visible & (distance <= left)
    if right is not None:
        visible = visible & (distance >= -right)
    return visible
