"""Plans: layout work and the call of aiter's function, with everything else decided beforehand."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from xattn import AttentionOutput, AttentionRequest
from xattn.plugin import Plan, derivatives
from xattn.plugin.geometry import Geometry, fill_dead_rows
from xattn_rocm import graphs, vendor
from xattn_rocm.aiter.attention.routing import Passed


def plan(request: AttentionRequest, passed: Passed) -> Plan:
    if passed.varlen:
        return _varlen(request, passed)
    run = _dense(request, passed)
    return _with_first_gradients(run) if request.any_grad else run


def _with_first_gradients(run: Plan) -> Plan:
    """aiter's own backward returns constants, of which a second derivative would know nothing."""

    def guarded(q: Tensor, k: Tensor, v: Tensor, **given: Tensor) -> Any:
        return run(*derivatives.guarded("aiter", q, k, v), **given)

    return guarded


def _dense(request: AttentionRequest, passed: Passed) -> Plan:
    kernel = vendor.module("aiter").flash_attn_func
    whole = Geometry.of(request)
    first, dead, seqlen_q = whole.first_k, whole.first_q, request.seqlen_q
    cut = seqlen_q - passed.seqlen_q
    dropout_p, scale, causal, window = request.dropout_p or 0.0, request.softmax_scale, passed.causal, passed.window
    deterministic, with_lse, return_lse = passed.deterministic, passed.return_lse, request.return_lse
    # aiter pads such a head to a multiple of 8 and returns a view of the padded output.
    padded = request.headdim_v % 8 != 0
    finished = not (with_lse or padded or cut or dead)

    def dense(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        sinks: Tensor | None = None,
        alibi_slopes: Tensor | None = None,
        bias: Tensor | None = None,
    ) -> Tensor | AttentionOutput:
        if first:
            k, v = k[:, first:], v[:, first:]
        if cut:
            q = q[:, cut:]
        if bias is not None:
            bias, k, v = _with_bias(bias, k, v, first)
        if alibi_slopes is not None:
            alibi_slopes = alibi_slopes.contiguous()
        given = (q, k, v, dropout_p, scale, causal, window, bias, alibi_slopes, deterministic, with_lse)
        # ck-no-sinks: old releases have no argument for them.
        returned = kernel(*given) if sinks is None else kernel(*given, sink_ptr=sinks)
        if finished:
            out: Tensor = returned
            return out
        lse: Tensor | None
        out, lse = returned if with_lse else (returned, None)
        if cut:
            out = F.pad(out, (0, 0, 0, 0, cut, 0))
            lse = None if lse is None else F.pad(lse, (cut, 0), value=-math.inf)
        elif dead:
            fill_dead_rows(out, lse, dead, seqlen_q, sinks)
        if padded:
            out = out.contiguous()
        return AttentionOutput(out, lse) if return_lse and lse is not None else out

    return dense


def _with_bias(bias: Tensor, k: Tensor, v: Tensor, first: int) -> tuple[Tensor, Tensor, Tensor]:
    """The bias as aiter's (seqlen_q, seqlen_k), and k and v without what it hides from every query: CK would add NaN to
    -inf, and multiply it by 0."""
    bias = bias.flatten(0, -2)[:, first:]
    if bias.stride(1) != 1:
        bias = bias.contiguous()
    hidden = (bias.amax(0) == -math.inf)[:, None, None]
    return bias, k.masked_fill(hidden, 0.0), v.masked_fill(hidden, 0.0)


def _varlen(request: AttentionRequest, passed: Passed) -> Plan:
    """By way of the varlen function, the only one with a softcap (dense-without-softcap): the batch rows are sequences
    of one length. Views, where a row follows the one before without a gap, as in a contiguous tensor. Forward only."""
    kernel = vendor.module("aiter").flash_attn_varlen_func
    batch, seqlen_q, seqlen_k, nheads = request.batch, passed.seqlen_q, passed.seqlen_k, request.nheads
    whole = Geometry.of(request)
    first, dead = whole.first_k, whole.first_q
    dropout_p, scale, causal, window = request.dropout_p or 0.0, request.softmax_scale, passed.causal, passed.window
    softcap, deterministic, return_lse = request.softcap, passed.deterministic, request.return_lse
    padded = request.headdim_v % 8 != 0
    # cu_seqlens of q and k, by device: a request does not say which GPU.
    starts: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def varlen(q: Tensor, k: Tensor, v: Tensor) -> Tensor | AttentionOutput:
        if first:
            k, v = k[:, first:], v[:, first:]
        found = starts.get(q.device)
        if found is None:
            found = _starts(batch, seqlen_q, q.device), _starts(batch, seqlen_k, q.device)
            if graphs.keeps():
                starts[q.device] = found
        returned = kernel(
            q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), *found, seqlen_q, seqlen_k, 0, dropout_p, scale,
            softcap, causal, window, None, None, deterministic, return_lse,
        )  # fmt: skip
        out, lse = returned if return_lse else (returned, None)
        out = out.unflatten(0, (batch, seqlen_q))
        if lse is not None:
            lse = lse.view(nheads, batch, seqlen_q).transpose(0, 1)
        if dead:
            fill_dead_rows(out, lse, dead, seqlen_q, None)
        if padded:
            out = out.contiguous()
        return out if lse is None else AttentionOutput(out, lse)

    return varlen


def _starts(batch: int, seqlen: int, device: torch.device) -> Tensor:
    return torch.arange(batch + 1, dtype=torch.int32, device=device) * seqlen
