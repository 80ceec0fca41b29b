"""`aiter.flash_attn_varlen_func`: what it serves, and its plan."""

from __future__ import annotations

import os
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from xattn import AttentionOutput, Capabilities, Reason, VarlenKernel, VarlenRequest
from xattn.plugin import Plan, derivatives
from xattn_rocm import vendor
from xattn_rocm.aiter.attention.limits import environment_reasons, scale_reasons, sinks_reasons
from xattn_rocm.aiter.attention.passed import written
from xattn_rocm.aiter.attention.routing import NAMES, Passed, forward
from xattn_rocm.aiter.varlen_attention.rows import Unseen, dead_rows, fill, sequence_of
from xattn_rocm.installation import Installation, installation, usable

_FEATURES = frozenset(
    {
        "causal",
        "window",
        "bottom_right",
        "gqa",
        "headdim_v",
        "softcap",
        "sinks",
        "alibi_slopes",
        "deterministic",
        "return_lse",
    }
)  # fmt: skip
# More keys than a sequence can have, so that sums with it stay within 32 bits.
_ALL = 2**30


def _block(archs: set[str], priority: int) -> Capabilities[Any]:
    return Capabilities(
        device="rocm",
        dtypes=frozenset({torch.float16, torch.bfloat16}),
        features=_FEATURES,
        grads=frozenset({"qkv"}),
        sizes={"headdim": (1, 256, 1), "headdim_v": (1, 256, 1)},
        archs=frozenset(archs),
        priority={"default": priority},
        checked="against a stand-in for aiter written from its sources; never on an AMD GPU",
    )


class AiterVarlen(VarlenKernel):
    # As `attention`.
    capabilities = (_block({"gfx942", "gfx950"}, 80), _block({"gfx90a", "gfx1201", "gfx1250"}, 40))

    def limits(self, request: VarlenRequest) -> list[Reason]:
        installed = installation()
        if isinstance(installed, Reason):
            return [installed]
        found = [*traced_reasons(), *environment_reasons(request, installed), *scale_reasons(request)]
        if request.sinks is not None:
            found += sinks_reasons(request, installed)
        if request.softcap is not None:
            found += _softcap(request)
        if request.alibi_slopes is not None and max(request.max_seqlen_q, request.max_seqlen_k) > 2**16:
            # ck-alibi-of-16-bits
            found.append(Reason("alibi_slopes", "longer bounds", f"up to {2**16} queries and keys"))
        if request.arch == "gfx942" and request.max_seqlen_q == 1:
            # varlen-decode-is-wrong
            hint = "It decodes wrongly there: https://github.com/ROCm/aiter/issues/2229. A bound of 2 holds as well."
            found.append(Reason("max_seqlen_q", 1, "2 or more on gfx942", hint))
        if request.any_grad and request.band[0] is not None:
            hint = "Keys before every window would have gradients of whatever the memory held."
            found.append(Reason("window", request.window, "nothing to the left, in training", hint))
        if not found and isinstance(passed := passed_for(request, installed), Reason):
            found.append(passed)
        return found

    def plan(self, request: VarlenRequest) -> Plan:
        return _plan(request, _passed(request, usable()))

    def kernel_name(self, request: VarlenRequest) -> str:
        installed = usable()
        route = NAMES[forward(_passed(request, installed), request.arch, installed, os.environ)]
        return f"aiter.flash_attn_varlen_func ({route}{'; backward: CK' if request.any_grad else ''})"


def traced_reasons() -> list[Reason]:
    if not torch.compiler.is_compiling():
        return []
    return [Reason("torch.compile", True, "an eager call", "aiter's Python is not traced; call it outside the graph.")]


def _softcap(request: VarlenRequest) -> list[Reason]:
    found = []
    if request.any_grad:
        # backward-knows-no-softcap
        hint = "aiter's backward kernels know no softcap. Call it under torch.no_grad()."
        found.append(Reason("softcap", "with gradients", "forward only", hint))
    if request.alibi_slopes is not None:
        # ck-softcap-drops-slopes-and-bias
        found.append(Reason("softcap", request.softcap, "off beside alibi_slopes", "CK ignores it there."))
    return found


def passed_for(request: VarlenRequest, installed: Installation) -> Passed | Reason:
    """What aiter gets, as far as its choice of a kernel looks at it.

    By its bound of keys aiter takes a side of the window for open (right-side-of-keys-is-open), and does nothing else:
    it gets one that is larger than the right side, and large enough for a left side above 0 that hides nothing."""
    left, right = request.band
    plain = Passed(
        dtype=request.dtype,
        seqlen_q=request.max_seqlen_q,
        seqlen_k=max(request.max_seqlen_k, 2, (right or 0) + 1),
        nheads=request.nheads,
        nheads_k=request.nheads_k,
        headdim=request.headdim,
        headdim_v=request.headdim_v,
        causal=right == 0,
        alibi=request.alibi_slopes is not None,
        sinks=request.sinks is not None,
        softcap=request.softcap is not None,
        return_lse=request.return_lse or request.any_grad,
        # Which picks CK's backward.
        deterministic=request.deterministic or request.any_grad,
        packed=True,
    )
    return written(plain, left, right, request.arch, installed, request.any_grad)


def _passed(request: VarlenRequest, installed: Installation) -> Passed:
    found = passed_for(request, installed)
    assert isinstance(found, Passed)
    return found


def _plan(request: VarlenRequest, passed: Passed) -> Plan:
    kernel = vendor.module("aiter").flash_attn_varlen_func
    left, right = request.band
    left = None if left is None else min(left, _ALL)
    training, with_lse, return_lse = request.any_grad, passed.return_lse, request.return_lse
    scale, softcap = request.softmax_scale, request.softcap or 0.0
    # aiter pads such a head to a multiple of 8 and returns a view of the padded output.
    padded = request.headdim_v % 8 != 0

    def run(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        cu_seqlens_q: Tensor,
        cu_seqlens_k: Tensor,
        *,
        max_seqlen_q: int,
        max_seqlen_k: int,
        sinks: Tensor | None = None,
        alibi_slopes: Tensor | None = None,
    ) -> Tensor | AttentionOutput:
        starts_q, starts_k = cu_seqlens_q.contiguous(), cu_seqlens_k.contiguous()
        dead, nobodys = dead_rows(starts_q, starts_k.diff(), len(q), right)
        if training:
            q, k, v = derivatives.guarded("aiter", *_with_zeros(q, k, v, starts_q, starts_k, dead))
        more: dict[str, Any] = {}
        if left is not None:
            # Keys before every window may hold NaN, which CK would multiply by 0: a sequence begins at the first that
            # is seen.
            first = (starts_k.diff() - starts_q.diff() - left).clamp_min(0)
            more["cu_seqlens_k_padded"] = F.pad(starts_k[:-1] + first, (0, 1))
            more["cu_seqlens_k_padded"][-1] = starts_k[-1]
            starts_k = F.pad((starts_k.diff() - first).cumsum(0, dtype=torch.int32), (1, 0))
        if sinks is not None:
            # ck-no-sinks: old releases have no argument for them.
            more["sink_ptr"] = sinks
        returned = kernel(
            q, k, v, starts_q, starts_k, max(max_seqlen_q, 1), passed.seqlen_k, softmax_scale=scale,
            logits_soft_cap=softcap, causal=passed.causal, window_size=passed.window,
            alibi_slopes=None if alibi_slopes is None else alibi_slopes.contiguous(),
            deterministic=passed.deterministic, return_lse=with_lse, **more,
        )  # fmt: skip
        out, lse = returned if with_lse else (returned, None)
        out, lse = fill(out, lse, dead, nobodys, sinks, in_place=not training)
        if padded:
            out = out.contiguous()
        return AttentionOutput(out, lse) if return_lse and lse is not None else out

    return run


def _with_zeros(
    q: Tensor, k: Tensor, v: Tensor, starts_q: Tensor, starts_k: Tensor, dead: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The tensors, whose gradients are 0 in rows that see nothing, and that no query sees."""
    sequence, nobodys = sequence_of(starts_k, len(k))
    unseen = nobodys | (starts_q.diff() == 0)[sequence]
    given = ((q, dead), (k, unseen), (v, unseen))
    q, k, v = (Unseen.apply(x, rows) if x.requires_grad else x for x, rows in given)  # type: ignore[no-untyped-call]
    return q, k, v
