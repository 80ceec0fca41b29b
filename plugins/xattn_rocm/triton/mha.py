"""`mha.flash_attn_func`: BSNH in and out, grouped heads, gradients, lse."""

from __future__ import annotations

import torch
from torch import Tensor

from xattn import AttentionOutput, Reason, Request
from xattn.backend import Plan
from xattn_rocm import vendor
from xattn_rocm.archs import ARCHS
from xattn_rocm.bands import band, bury, dead_rows, first_seen
from xattn_rocm.installation import Installation
from xattn_rocm.rules import holds

_MODULES = {"flat": "aiter.ops.triton.mha", "attention": "aiter.ops.triton.attention.mha"}


def reasons(request: Request, installed: Installation) -> list[Reason]:
    """What stops this kernel. Pure."""
    found = []
    arch = ARCHS.get(request.arch or "")
    if arch is None or installed.layout not in arch.triton_mha:
        served = ", ".join(name for name, each in ARCHS.items() if installed.layout in each.triton_mha)
        found.append(Reason("arch", request.arch, served, "aiter has no launch configuration for its MHA elsewhere."))
    if request.softcap is not None:
        found.append(Reason("softcap", request.softcap, "off", "aiter's MHA kernel has none."))
    if request.seqlens_k is not None:
        found.append(Reason("seqlens_k", request.seqlens_k, "off", "aiter's MHA kernel takes no padded batch."))
    found += _window_reasons(request, installed)
    if request.sinks is not None and holds("triton-mha-no-sinks", installed):
        found.append(Reason("sinks", request.sinks, "off", "This release's MHA kernel has none; a newer aiter has."))
    found += _headdim_reasons(request)
    return found


def _window_reasons(request: Request, installed: Installation) -> list[Reason]:
    left, right = band(request)
    if left is None and right in (None, 0):
        return []
    if right not in (None, 0):
        return [Reason("window", request.window, "nothing to the right", "aiter's MHA kernel has left windows alone.")]
    if holds("triton-mha-no-window", installed):
        return [Reason("window", request.window, "off", "This release's MHA kernel has none; a newer aiter has.")]
    if left == 0:
        # The kernel takes 0 for no window at all.
        return [Reason("window", request.window, "at least one key to the left", "Use another backend for it.")]
    return []


def _headdim_reasons(request: Request) -> list[Reason]:
    headdim, headdim_v = request.headdim, request.headdim_v
    if request.any_grad and headdim % 8 != 0:
        hint = "aiter pads the head and hands back gradients of the padded width: pad q, k and v yourself."
        return [Reason("headdim", headdim, "a multiple of 8 where gradients are wanted", hint)]
    if headdim != headdim_v and not (_is_width(headdim_v) and _is_width(headdim - headdim_v)):
        want = "headdim, or less by a power of 2 and itself one, both from 16 on (192 and 128)"
        return [Reason("headdim_v", headdim_v, want)]
    return []


def _is_width(size: int) -> bool:
    return size >= 16 and size & (size - 1) == 0


def plan(request: Request, installed: Installation) -> Plan:
    left, right = band(request)
    first, dead = first_seen(request), dead_rows(request)
    causal, scale, return_lse = right == 0, request.softmax_scale, request.return_lse
    options: dict[str, object] = {} if left is None else {"window_size": (left, -1)}
    nheads = request.nheads
    module = vendor.module(_MODULES[installed.layout])
    kernel = module.flash_attn_func

    def run(
        q: Tensor, k: Tensor, v: Tensor, *, sinks: Tensor | None = None, alibi_slopes: Tensor | None = None
    ) -> Tensor | AttentionOutput:
        if first:
            k, v = k[:, first:], v[:, first:]
        given = dict(options)
        if sinks is not None:
            given["sink"] = sinks.contiguous()
        if alibi_slopes is not None:
            given["alibi_slopes"] = alibi_slopes.expand(q.shape[0], nheads)
        returned = kernel(q, k, v, softmax_scale=scale, causal=causal, return_lse=return_lse, **given)
        if not return_lse:
            return returned.contiguous()
        out, lse = returned
        if dead:
            # aiter says 0 there.
            bury(out, lse, dead, sinks)
        return AttentionOutput(out.contiguous(), lse)

    return run
