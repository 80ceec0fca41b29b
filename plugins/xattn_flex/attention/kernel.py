"""`attention` by torch's flex_attention: what it serves, and its plan."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from xattn import AttentionKernel, AttentionOutput, AttentionRequest, Capabilities, Reason
from xattn.plugin import Plan, Request
from xattn.plugin.geometry import Geometry
from xattn_flex.attention import blocks, compiled, gradients, mods
from xattn_flex.attention.mods import Tensors
from xattn_flex.attention.unseen import seen_keys

_CUDA: Capabilities[Any] = Capabilities(
    device="cuda",
    dtypes=frozenset({torch.float32, torch.float16, torch.bfloat16}),
    features=frozenset(
        {
            "causal",
            "window",
            "top_left",
            "bottom_right",
            "offset",
            "gqa",
            "headdim_v",
            "softcap",
            "sinks",
            "alibi_slopes",
            "bias",
            "mask",
            "seqlens_k",
            "return_lse",
        }
    ),
    grads=frozenset({"qkv", "sinks", "lse"}),
    sizes={"headdim": (16, 256, 1), "headdim_v": (16, 256, 1)},
    # torch has faster ones.
    priority={"default": 10},
    checked="calls of each feature on an NVIDIA H100, torch 2.11; not yet the whole suite",
)
_ROCM = replace(_CUDA, device="rocm", checked="declared, never run on ROCm")
# But for blocks of matmuls, which it has for softcap and ALiBi, and for its flash kernel's windows.
_AHEAD = {each.device: replace(each, priority={"default": 55}) for each in (_CUDA, _ROCM)}


class FlexAttention(AttentionKernel):
    capabilities = (_CUDA, _ROCM)

    def block(self, request: Request) -> Capabilities[Any] | None:
        found = super().block(request)
        if found is None or not isinstance(request, AttentionRequest):
            return found
        slow = request.softcap is not None or request.alibi_slopes is not None or request.window is not None
        return _AHEAD[found.device] if slow else found

    def limits(self, request: AttentionRequest) -> list[Reason]:
        if torch.compiler.is_compiling():
            return [
                Reason("torch.compile", True, "an eager call", "It is compiled by itself; call it outside the graph.")
            ]
        if request.bias is not None and request.return_lse:
            hint = "A bias as low as a number goes is raised, which changes no out, and lse."
            return [Reason("return_lse", True, "off beside a bias", hint)]
        return []

    def plan(self, request: AttentionRequest) -> Plan:
        return functools.partial(_run, request, _kind(request), {})

    def unbuilt(self, request: AttentionRequest) -> str | None:
        if _kind(request) in compiled.built:
            return None
        return "2 to 8 s of torch.compile" if not request.any_grad else "4 to 20 s of torch.compile"

    def kernel_name(self, request: AttentionRequest) -> str:
        return "torch's flex_attention"


def _kind(request: AttentionRequest) -> Hashable:
    """What decides the compiled kernel. Of lengths what torch makes kernels of their own for."""
    seqlen_q, seqlen_k = request.seqlen_q, request.seqlen_k
    named = ("softcap", "bias", "mask", "alibi_slopes", "seqlens_k")
    return (
        request.device,
        request.dtype,
        request.headdim,
        request.headdim_v,
        request.batch,
        request.nheads,
        request.nheads_k,
        request.any_grad,
        request.has_band,
        (seqlen_q == 1, seqlen_q < blocks.SIZE, seqlen_q == seqlen_k),
        (seqlen_q % blocks.SIZE == 0, seqlen_k % blocks.SIZE == 0),
        tuple(getattr(request, name) is not None for name in named),
    )


def _by_blocks(request: AttentionRequest) -> bool:
    """Whether whole blocks of the band are left out. Of fewer queries than a block torch has no kernel that does (it
    raises NoValidChoicesError), and of lengths each row has a band of its own."""
    return request.has_band and request.seqlens_k is None and request.seqlen_q >= blocks.SIZE


def _run(
    request: AttentionRequest,
    kind: Hashable,
    kept: dict[Hashable, Any],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    sinks: Tensor | None = None,
    alibi_slopes: Tensor | None = None,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
    seqlens_k: Tensor | None = None,
    align: int | None = None,
) -> Tensor | AttentionOutput:
    offset = align if request.offset is None else request.offset
    assert offset is not None
    whole = Geometry(request.seqlen_q, request.seqlen_k, *request.band, offset)
    if seqlens_k is None and (whole.first_k, whole.end_k) != (0, request.seqlen_k):
        keys = slice(whole.first_k, whole.end_k)
        if keys.start == keys.stop:
            keys = slice(0, 1)  # no query sees a key; the kernel wants one
        k, v, bias, mask = k[:, keys], v[:, keys], _cut(bias, keys), _cut(mask, keys)
        whole = whole.part(0, request.seqlen_q, keys.start, keys.stop)
    given = _tensors(request, whole, q, k, kept, alibi_slopes, bias, mask, seqlens_k)
    if any(each is not None for each in (given.bias, given.mask, given.lengths)):
        seen = seen_keys(q, k, given)
        k, v = k.masked_fill(~seen, 0.0), v.masked_fill(~seen, 0.0)
    block_mask = None
    if _by_blocks(request):
        assert given.band is not None
        low, high = _sides(*request.band, whole.offset)
        band, sizes = given.band, (whole.seqlen_q, whole.seqlen_k)
        make = functools.partial(blocks.of_band, *sizes, low, high, q.device, mods.mask_mod(band))
        block_mask = _kept(kept, ("blocks", *sizes, low, high, q.device), make)
    score_mod = mods.score_mod(given, request.has_band and block_mask is None)
    function = compiled.function(kind)

    def call(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        transposed = (x.transpose(1, 2) for x in (q, k, v))
        with compiled.same_environment():
            return function(*transposed, score_mod, block_mask, request.softmax_scale, request.group > 1)

    out, lse = gradients.attend(call, q, k, v) if request.requires_grad else call(q, k, v)
    compiled.built.add(kind)
    out = out.transpose(1, 2)
    if sinks is not None:
        rows = sinks.float()[:, None]
        # Not exp(lse - logaddexp(lse, sink)): beside a large lse both are rounded to more than the weight needs.
        out = out * torch.sigmoid(lse - rows).transpose(1, 2).unsqueeze(3).to(out.dtype)
        lse = torch.logaddexp(lse, rows)
    return AttentionOutput(out.contiguous(), lse) if request.return_lse else out.contiguous()


def _tensors(
    request: AttentionRequest,
    whole: Geometry,
    q: Tensor,
    k: Tensor,
    kept: dict[Hashable, Any],
    slopes: Tensor | None,
    bias: Tensor | None,
    mask: Tensor | None,
    lengths: Tensor | None,
) -> Tensors:
    batch, seqlen_q, nheads, _ = q.shape
    full = (batch, nheads, seqlen_q, k.shape[1])
    band, offsets = None, None
    if request.has_band:
        # Of lengths each row counts from an offset of its own.
        low, high = _sides(*request.band, whole.offset if lengths is None else 0)
        band = _kept(kept, ("band", low, high, q.device), functools.partial(blocks.edges, low, high, q.device))
    if lengths is not None:
        lengths = lengths.int()
        bottom_right = request.align == "bottom_right"
        offsets = lengths - seqlen_q if bottom_right else torch.full_like(lengths, whole.offset)
    elif slopes is not None:
        offsets = torch.full((batch,), whole.offset, dtype=torch.int32, device=q.device)
    cap = request.softcap
    softcap = None
    if cap is not None:
        softcap = _kept(kept, ("softcap", q.device), lambda: torch.full((1,), cap, device=q.device))
    return Tensors(
        softcap=softcap,
        band=band,
        bias=None if bias is None else bias.expand(full),
        mask=None if mask is None else mask.expand(full),
        slopes=None if slopes is None else slopes.expand(batch, nheads),
        lengths=lengths,
        offsets=offsets,
    )


def _sides(left: int | None, right: int | None, offset: int) -> tuple[int, int]:
    """(low, high): query i sees the keys from i + low to i + high."""
    low = -blocks.OPEN if left is None else max(offset - left, -blocks.OPEN)
    return low, blocks.OPEN if right is None else min(offset + right, blocks.OPEN)


def _cut(x: Tensor | None, keys: slice) -> Tensor | None:
    return x if x is None or x.dim() == 0 or x.shape[-1] == 1 else x[..., keys]


def _kept(kept: dict[Hashable, Any], key: Hashable, make: Callable[[], Any]) -> Any:
    """Made once for a plan; in a graph, which writes what it makes when it is replayed, in each call."""
    if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
        return make()
    if key not in kept:
        if len(kept) >= 256:
            kept.clear()
        kept[key] = make()
    return kept[key]
