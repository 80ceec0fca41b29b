"""Plans: layout work and the call of a flash_fwd, with everything else decided beforehand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.compiler import is_compiling

from xattn import AttentionOutput, AttentionRequest
from xattn.plugin import Plan, derivatives
from xattn.plugin.geometry import Geometry, fill_dead_rows
from xattn_neuron import layout, torch_ops
from xattn_neuron.installation import Installation
from xattn_neuron.nki_legacy.attention import launches
from xattn_neuron.nki_legacy.attention.limits import variant


@dataclass(frozen=True)
class Options:
    """What both directions are told. length_q, length_k: as padded. window: as the kernel counts it, -1 for none."""

    scale: float
    causal: bool
    window: int
    mixed: bool
    length_q: int
    length_k: int
    tile: int
    compiled: bool

    @property
    def forward(self) -> tuple[float, bool, int, bool, int]:
        """As flash_fwd takes them."""
        return self.scale, self.causal, self.window, self.mixed, self.tile


def plan(request: AttentionRequest, installed: Installation) -> Plan:
    whole = Geometry.of(request)
    kept = whole.trimmed()
    options = _options(request, kept)
    if request.any_grad:
        return _with_gradients(request, whole, options)
    total, return_lse = request.seqlen_q, request.return_lse
    seqlen_q, length_q, length_k = kept.seqlen_q, options.length_q, options.length_k
    first_q, end_q, first_k, end_k = whole.first_q, whole.end_q, whole.first_k, whole.end_k
    cuts_q, cuts_k = seqlen_q != total, kept.seqlen_k != request.seqlen_k
    call = _call(request, installed, kept, options)

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor | AttentionOutput:
        if cuts_q:
            q = q[:, first_q:end_q]
        if cuts_k:
            k, v = k[:, first_k:end_k], v[:, first_k:end_k]
        q, k = layout.dims_first(q, length_q), layout.dims_first(k, length_k)
        returned = call(q, k, layout.padded(v, length_k))
        heads = returned[0] if return_lse else returned
        out = layout.among(heads, seqlen_q, first_q, total) if cuts_q else layout.heads_last(heads, seqlen_q)
        lse = layout.rows_of_tiles(returned[1], seqlen_q) if return_lse else None
        if cuts_q:
            lse = None if lse is None else layout.lse_among(lse, first_q, total)
            fill_dead_rows(out, lse, first_q, end_q, None)
        return out if lse is None else AttentionOutput(out, lse)

    return run


def _call(request: AttentionRequest, installed: Installation, kept: Geometry, options: Options) -> Callable[..., Any]:
    """A flash_fwd for (q, k, v), which returns what AWS's returns."""
    grid = (request.batch, request.nheads_k)
    if variant(installed) == "nxdi":
        rest = (options.scale, -2 if kept.left is None else kept.left, options.mixed, options.tile)
        if not options.compiled:
            return launches.bound_nxdi(grid, *rest)
        nxdi = torch_ops.operator(launches.flash_fwd_nxdi)
        return lambda q, k, v: nxdi(q, k, v, *rest)
    if not options.compiled:
        return launches.bound(grid, *options.forward, request.return_lse)
    neuronxcc, return_lse = torch_ops.operator(launches.flash_fwd), request.return_lse

    def call(q: Tensor, k: Tensor, v: Tensor) -> Any:
        returned = neuronxcc(q, k, v, *options.forward, return_lse)
        return returned if return_lse else returned[0]

    return call


def _options(request: AttentionRequest, kept: Geometry) -> Options:
    # legacy-keys-of-whole-tiles. Keys that padding adds lie behind the diagonal.
    length_k = layout.up(kept.seqlen_k, 512)
    return Options(
        scale=request.softmax_scale,
        causal=kept.causal,
        # legacy-window-is-causal
        window=-1 if kept.left is None else kept.left + 1,
        # legacy-mixed-precision-is-bfloat16
        mixed=request.dtype != torch.float32,
        # legacy-tail-is-never-written. In training a causal call wants as many queries as keys.
        length_q=length_k if request.any_grad and kept.causal else layout.up(kept.seqlen_q, 128),
        length_k=length_k,
        tile=next(tile for tile in (2048, 1024, 512) if length_k % tile == 0),
        compiled=is_compiling(),
    )


def _with_gradients(request: AttentionRequest, whole: Geometry, options: Options) -> Plan:
    first_q, end_q, first_k, end_k = whole.first_q, whole.end_q, whole.first_k, whole.end_k
    behind = request.seqlen_q - end_q
    cuts_q, cuts_k = end_q - first_q != request.seqlen_q, end_k - first_k != request.seqlen_k

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if cuts_q:
            q = q[:, first_q:end_q]
        if cuts_k:
            k, v = k[:, first_k:end_k], v[:, first_k:end_k]
        out: Tensor = Attend.apply(q, k, v, options)  # type: ignore[no-untyped-call]
        return F.pad(out, (0, 0, 0, 0, first_q, behind)) if cuts_q else out

    return run


class Attend(Function):
    """(q, k, v, options) -> out, differentiable in q, k and v: neuronx-cc's flash_fwd and flash_attn_bwd."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, options: Options) -> Tensor:
        call: Callable[..., Any] = torch_ops.operator(launches.flash_fwd) if options.compiled else launches.flash_fwd
        length_q, length_k = options.length_q, options.length_k
        given = layout.dims_first(q, length_q), layout.dims_first(k, length_k), layout.padded(v, length_k)
        heads, lse = call(*given, *options.forward, True)
        out = layout.heads_last(heads, q.shape[1])
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.options = options
        return out

    @staticmethod
    @derivatives.first_alone("nki-legacy")
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse = ctx.saved_tensors
        options: Options = ctx.options
        call = torch_ops.operator(launches.flash_attn_bwd) if options.compiled else launches.flash_attn_bwd
        length_q, length_k = options.length_q, options.length_k
        found = call(
            layout.dims_first(q, length_q), layout.dims_first(k, length_k), layout.dims_first(v, length_k),
            layout.dims_first(out, length_q), layout.dims_first(dout, length_q), lse,
            options.scale, options.causal, options.window,
        )  # fmt: skip
        grads = (layout.from_dims_first(dx, x.shape[1]) for dx, x in zip(found, (q, k, v), strict=True))
        return *grads, None
