"""Plans on the CPU that are one call of F.scaled_dot_product_attention with views around it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from xattn import AttentionRequest
from xattn.plugin import Plan
from xattn.plugin.geometry import Geometry
from xattn.plugin.symbolic import holds, known, smaller
from xattn.plugin.tensors import is_plain
from xattn_sdpa.attention.masks import seen_keys, with_four

_sdpa = F.scaled_dot_product_attention
# The unbound method: 0.1 us less a call, and an attention has four.
_t = torch.Tensor.transpose


# A query whose scores are all NaN gets 0 from the fused kernel where fewer keys than a vector register holds are added
# up without a mask (torch 2.13). With a mask it gets NaN, so one of zeros goes in.
FEW_KEYS = 16
# The kernel adds up the gradients of a group's heads in the dtype of k: in 16 bits the loss grows with the group, past
# what rounding each head's share costs (71 heads in bfloat16: 2.31 for 2.22).
GROUP_OF_GRADIENTS = 8


@dataclass(frozen=True)
class Direct:
    """What the one call is: causal from the top left or not at all, over the keys [first, last).

    fold: one query a sequence, and its heads go in as the rows of one head a group (K and V are read once a group).
    """

    causal: bool
    first: int
    last: int
    fold: bool


def direct(request: AttentionRequest) -> Direct | None:
    """How one call can serve the request's band, if it can."""
    left, right = request.band
    seqlen_q, seqlen_k = request.seqlen_q, request.seqlen_k
    if request.any_grad and request.dtype.itemsize == 2 and holds(request.group > GROUP_OF_GRADIENTS):
        return None
    # Not for training: the kernel gives back the gradient of a folded q in an order that must be copied.
    one = holds(seqlen_q == 1)
    fold = one and not known(request.nheads_k == request.nheads) and not request.any_grad
    if left is None and right is None:
        return Direct(False, 0, seqlen_k, fold)
    geometry = Geometry.of(request)
    if one:
        # One query sees one range of keys. Where it sees none the range is empty, which is another engine's.
        first, last = geometry.first_k, geometry.end_k
        return Direct(False, first, last, fold) if holds(first < last) else None
    if left is None and right is not None:
        if geometry.full:
            return Direct(False, 0, seqlen_k, False)
        if known(geometry.offset + right == 0):
            # Keys past the last query are behind the diagonal for all; cut off, they are not read.
            return Direct(True, 0, smaller(seqlen_q, seqlen_k), False)
    return None


def plan(request: AttentionRequest, how: Direct) -> Plan:
    """The request must have no other features than scale, mask and bias."""
    options: dict[str, Any] = {}
    if how.causal:
        options["is_causal"] = True
    if not how.fold and not known(request.nheads_k == request.nheads):
        options["enable_gqa"] = True
    if request.scale is not None:
        options["scale"] = request.scale
    cut = not (known(how.first == 0) and known(how.last == request.seqlen_k))
    if request.mask is None and request.bias is None:
        if _few(how.last - how.first):
            options["attn_mask"] = _zeros(request.batch, how.last - how.first, request.dtype)
        if how.fold:
            return _folded(options, how, request.group, cut)
        return _cut(options, how) if cut else _whole(options)
    return _masked(request, options, how)


def _zeros(batch: int, keys: int, dtype: torch.dtype) -> Tensor:
    if torch.compiler.is_compiling():
        return _of_every_row(torch.zeros(1, 1, 1, keys, dtype=dtype, device="cpu"), batch)
    # The plan is kept, so nothing of the moment may stick to it: no default device, no inference mode.
    with torch.inference_mode(False):
        return torch.zeros(1, 1, 1, keys, dtype=dtype, device="cpu")


def _of_every_row(added: Tensor, batch: int) -> Tensor:
    """A mask of all batch rows. torch's attention asks whether one of a single row meets more rows, which nobody can
    tell while a graph with an unbacked batch is made."""
    return added.expand(batch, -1, -1, -1)


def _few(keys: int) -> bool:
    # A symbolic length stays symbolic: a guard would compile a graph for either side of the limit.
    return known(keys < FEW_KEYS)


def _whole(options: dict[str, Any]) -> Plan:
    if options.keys() <= {"attn_mask"}:
        # Spelt out for the commonest call: a keyword costs 0.1 us.
        zeros = options.get("attn_mask")

        def whole_plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            out = _t(_sdpa(_t(q, 1, 2), _t(k, 1, 2), _t(v, 1, 2)), 1, 2)
            return out if out.is_contiguous() else out.contiguous()

        def whole_few(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            out = _t(_sdpa(_t(q, 1, 2), _t(k, 1, 2), _t(v, 1, 2), zeros), 1, 2)
            return out if out.is_contiguous() else out.contiguous()

        return whole_plain if zeros is None else whole_few

    def whole(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = _t(_sdpa(_t(q, 1, 2), _t(k, 1, 2), _t(v, 1, 2), **options), 1, 2)
        return out if out.is_contiguous() else out.contiguous()

    return whole


def _cut(options: dict[str, Any], how: Direct) -> Plan:
    run, first, last = _whole(options), how.first, how.last
    return lambda q, k, v: run(q, k[:, first:last], v[:, first:last])


def _folded(options: dict[str, Any], how: Direct, group: int, cut: bool) -> Plan:
    first, last = how.first, how.last

    def folded(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if cut:
            k, v = k[:, first:last], v[:, first:last]
        batch, _, nheads, headdim = q.shape
        rows = q.view(batch, nheads // group, group, headdim)
        out = _sdpa(rows, _t(k, 1, 2), _t(v, 1, 2), **options)
        return out.reshape(batch, 1, nheads, v.shape[3])

    return folded


def _masked(request: AttentionRequest, options: dict[str, Any], how: Direct) -> Plan:
    nheads, nheads_k, group = request.nheads, request.nheads_k, request.group
    first, last = how.first, how.last
    # A finite output tells that no NaN came in from a hidden key, and spares writing k and v anew. Not so with
    # gradients: an infinite key can leave the output finite and its gradient not.
    look = not request.any_grad

    def masked(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        k, v = k[:, first:last], v[:, first:last]
        mask, bias = _cut_keys(with_four(mask), first, last), _cut_keys(with_four(bias), first, last)
        if bias is None:
            added = mask
        else:
            # The kernel takes a bias of q's dtype, or in float32.
            wide = torch.float64 if q.dtype == torch.float64 else torch.float32
            added = bias if bias.dtype == q.dtype else bias.to(wide)
            if mask is not None:
                added = added.masked_fill(~mask, -torch.inf)
        if look and not torch.compiler.is_compiling() and all(map(is_plain, (q, k, v, added))):
            out = once(q, k, v, added)
            if _finite(out):
                return out
        unseen = ~seen_keys(mask, bias, q, k, how.causal)
        # Not torch.where, which takes the layout of the condition, and the gradients of k and v would have it too.
        return once(q, k.masked_fill(unseen, 0.0), v.masked_fill(unseen, 0.0), added)

    def once(q: Tensor, k: Tensor, v: Tensor, added: Tensor | None) -> Tensor:
        batch, _, _, headdim = q.shape
        if added is not None and torch.compiler.is_compiling():
            added = _of_every_row(added, batch)
        if how.fold:
            if added is not None and added.shape[1] != 1:
                added = added.expand(-1, nheads, 1, -1).unflatten(1, (nheads_k, group)).squeeze(3)
            rows = q.view(batch, nheads_k, group, headdim)
            out = _sdpa(rows, _t(k, 1, 2), _t(v, 1, 2), attn_mask=added, **options)
            return out.reshape(batch, 1, nheads, v.shape[3])
        out = _t(_sdpa(_t(q, 1, 2), _t(k, 1, 2), _t(v, 1, 2), attn_mask=added, **options), 1, 2)
        return out if out.is_contiguous() else out.contiguous()

    return masked


def _finite(out: Tensor) -> bool:
    """By a sum, which is finite only where each summand is, and costs a twentieth. One that overflowed says nothing."""
    return math.isfinite(out.sum().item()) or bool(out.isfinite().all())


def _cut_keys(tensor: Tensor | None, first: int, last: int) -> Tensor | None:
    return tensor if tensor is None or holds(tensor.shape[3] == 1) else tensor[..., first:last]
