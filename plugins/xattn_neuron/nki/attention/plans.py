"""Plans of the forward: layout work and the call of attention_cte, with everything else decided beforehand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling, is_dynamo_compiling

from xattn import AttentionOutput, AttentionRequest
from xattn.plugin import Plan
from xattn.plugin.geometry import Geometry, fill_dead_rows
from xattn_neuron import layout, torch_ops
from xattn_neuron.installation import Installation
from xattn_neuron.nki.attention import gradients, launches
from xattn_neuron.rules import holds


def plan(request: AttentionRequest, installed: Installation) -> Plan:
    if request.any_grad:
        return gradients.plan(request, installed, scales_q(request, installed))
    return _forward(request, installed)


def scales_q(request: AttentionRequest, installed: Installation) -> bool:
    """Whether q is multiplied by the scale in its copy, and the kernel told 1.0."""
    kept = Geometry.of(request).trimmed()
    if kept.left is not None or prior(kept) or request.softmax_scale <= 0:
        # cte-range-select-has-no-scale, cte-scales-what-it-hides
        return request.softmax_scale != 1.0
    return request.any_grad and holds("bwd-scales-q-first", installed)


def prior(kept: Geometry) -> int:
    """The keys that lie before the diagonal of a causal call: the kernel's prefix."""
    return kept.offset if kept.causal else 0


def _forward(request: AttentionRequest, installed: Installation) -> Plan:
    whole = Geometry.of(request)
    kept = whole.trimmed()
    batch, nheads, seqlen_q, total = request.batch, request.nheads, kept.seqlen_q, request.seqlen_q
    first_q, end_q, first_k, end_k = whole.first_q, whole.end_q, whole.first_k, whole.end_k
    cuts_q, cuts_k = seqlen_q != total, kept.seqlen_k != request.seqlen_k
    start, return_lse = prior(kept), request.return_lse
    # cte-statistics-of-whole-tiles
    length = layout.up(seqlen_q, 128) if return_lse else seqlen_q
    shape = (batch, nheads, length, request.headdim)
    lay_q, call = _query_layout(request, installed, length), _call(request, installed, kept)
    # prior_used_len by device: a request does not say which.
    used: dict[torch.device, Tensor] = {}

    def run(q: Tensor, k: Tensor, v: Tensor, *, sinks: Tensor | None = None) -> Tensor | AttentionOutput:
        if cuts_q:
            q = q[:, first_q:end_q]
        if cuts_k:
            k, v = k[:, first_k:end_k], v[:, first_k:end_k]
        named = {}
        if start:
            named = {"k_prior": layout.heads_first(k[:, :start]), "v_prior": layout.heads_first(v[:, :start])}
            k, v = k[:, start:], v[:, start:]
            prior_used_len = used.get(q.device)
            if prior_used_len is None:
                prior_used_len = torch.full((1,), start, dtype=torch.int32, device=q.device)
                if not is_dynamo_compiling():
                    used[q.device] = prior_used_len
            named["prior_used_len"] = prior_used_len
        if sinks is not None:
            named["sink"] = layout.for_each_row(sinks, batch).view(batch * nheads, 1)
        returned = call(lay_q(q), layout.heads_first(k), layout.heads_first(v), **named)
        heads = (returned[0] if return_lse else returned).view(shape)
        out = layout.among(heads, seqlen_q, first_q, total) if cuts_q else layout.heads_last(heads, seqlen_q)
        lse = None
        if return_lse:
            tiles = lse_of(returned[1], returned[2]).view(batch, nheads, 128, -1)
            lse = layout.rows_of_tiles(tiles, seqlen_q)
        if cuts_q:
            lse = None if lse is None else layout.lse_among(lse, first_q, total)
            fill_dead_rows(out, lse, first_q, end_q, sinks)
        return out if lse is None else AttentionOutput(out, lse)

    return run


def _query_layout(request: AttentionRequest, installed: Installation, length: int) -> Callable[[Tensor], Tensor]:
    scale = request.softmax_scale
    if scales_q(request, installed):
        return lambda q: layout.scaled(q, length, scale).flatten(0, 1)
    if length != Geometry.of(request).trimmed().seqlen_q:
        return lambda q: layout.padded(q, length).flatten(0, 1)
    return layout.heads_first


def _call(request: AttentionRequest, installed: Installation, kept: Geometry) -> Callable[..., Any]:
    """As `launches.bound`."""
    scale = 1.0 if scales_q(request, installed) else request.softmax_scale
    # cte-window-is-causal
    window = None if kept.left is None else kept.left + 1
    options = (scale, kept.causal, window, request.return_lse, installed.lnc)
    if not is_compiling():
        return launches.bound(*options)
    operator, return_lse = torch_ops.operator(launches.attention_cte), request.return_lse

    def call(q: Tensor, k: Tensor, v: Tensor, **named: Tensor) -> Any:
        tensors = (named.get(name) for name in ("k_prior", "v_prior", "prior_used_len", "sink"))
        returned = operator(q, k, v, *tensors, *options)
        return returned if return_lse else returned[0]

    return call


def lse_of(neg_max: Tensor, sum_recip: Tensor) -> Tensor:
    return -(neg_max + sum_recip.log())
