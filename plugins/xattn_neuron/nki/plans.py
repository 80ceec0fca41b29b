"""Plans of the forward: layout work and the call of attention_cte, with everything else decided beforehand."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.compiler import is_compiling

from xattn import AttentionOutput, Request
from xattn.backend import Plan
from xattn_neuron import layout, ops
from xattn_neuron.cut import Cut, cut
from xattn_neuron.installation import Installation
from xattn_neuron.nki import gradients, kernels
from xattn_neuron.rules import holds


def plan(request: Request, installed: Installation) -> Plan:
    if request.any_grad:
        return gradients.plan(request, installed, scales_q(request, installed))
    return _forward(request, installed)


def scales_q(request: Request, installed: Installation) -> bool:
    """Whether q is multiplied by the scale in its copy, and the kernel told 1.0."""
    kept = cut(request)
    if kept.left is not None or prior(kept) or request.softmax_scale <= 0:
        # cte-range-select-has-no-scale, cte-scales-what-it-hides
        return request.softmax_scale != 1.0
    return request.any_grad and holds("bwd-scales-q-first", installed)


def prior(kept: Cut) -> int:
    """The keys that lie before the diagonal of a causal call: the kernel's prefix."""
    return kept.offset if kept.causal else 0


def _forward(request: Request, installed: Installation) -> Plan:
    kept = cut(request)
    call = ops.kernel(kernels.attention_cte) if is_compiling() else kernels.attention_cte
    batch, nheads, seqlen_q = request.batch, request.nheads, kept.seqlen_q
    first_q, end_q, first_k, end_k = kept.first_q, kept.end_q, kept.first_k, kept.end_k
    prefix = prior(kept)
    scaled, return_lse, lnc = scales_q(request, installed), request.return_lse, installed.lnc
    # cte-statistics-of-whole-tiles
    length = layout.up(seqlen_q, 128) if return_lse else seqlen_q
    scale = 1.0 if scaled else request.softmax_scale
    times = request.softmax_scale if scaled else None
    # cte-window-is-causal
    causal, window = kept.causal, None if kept.left is None else kept.left + 1
    cuts_q, cuts_k = seqlen_q != request.seqlen_q, kept.seqlen_k != request.seqlen_k
    total = request.seqlen_q
    start, seqlen_k = prefix, kept.seqlen_k - prefix
    # By device: a request names none.
    used: dict[torch.device, Tensor] = {}

    def run(q: Tensor, k: Tensor, v: Tensor, *, sinks: Tensor | None = None) -> Tensor | AttentionOutput:
        if cuts_q:
            q = q[:, first_q:end_q]
        if cuts_k:
            k, v = k[:, first_k:end_k], v[:, first_k:end_k]
        k_prior = v_prior = prior_used_len = sink = None
        if prefix:
            k_prior, v_prior = (layout.heads_first(x[:, :start], start) for x in (k, v))
            k, v = k[:, start:], v[:, start:]
            prior_used_len = used.get(q.device)
            if prior_used_len is None:
                prior_used_len = torch.full((1,), start, dtype=torch.int32, device=q.device)
                if not torch.compiler.is_dynamo_compiling():
                    used[q.device] = prior_used_len
        if sinks is not None:
            sink = layout.for_each_row(sinks, batch).view(batch * nheads, 1)
        out, neg_max, sum_recip = call(
            layout.heads_first(q, length, times),
            layout.heads_first(k, seqlen_k),
            layout.heads_first(v, seqlen_k),
            k_prior, v_prior, prior_used_len, sink, scale, causal, window, return_lse, lnc,
        )  # fmt: skip
        out = layout.heads_last(out.unflatten(0, (batch, nheads)), seqlen_q, first_q, total)
        if not return_lse:
            return out
        lse = layout.rows_of_tiles(lse_of(neg_max, sum_recip).unflatten(0, (batch, nheads)), seqlen_q)
        return AttentionOutput(out, layout.buried(lse, first_q, total, sinks) if cuts_q else lse)

    return run


def lse_of(neg_max: Tensor, sum_recip: Tensor) -> Tensor:
    return -(neg_max + sum_recip.log())
