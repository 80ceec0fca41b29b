"""`mha.flash_attn_func`: BSNH in and out, grouped heads, gradients, lse."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from xattn import AttentionOutput, Reason, Request
from xattn.backend import Plan
from xattn_rocm import vendor
from xattn_rocm.archs import ARCHS
from xattn_rocm.bands import band, bury, dead_rows, first_seen
from xattn_rocm.installation import Installation
from xattn_rocm.rules import RULES, holds

_MODULES = {"flat": "aiter.ops.triton.mha", "attention": "aiter.ops.triton.attention.mha"}


def reasons(request: Request, installed: Installation) -> list[Reason]:
    """What stops this kernel. Pure."""
    found = []
    if not _configured(request.arch, installed):
        served = ", ".join(name for name in ARCHS if _configured(name, installed))
        found.append(Reason("arch", request.arch, served, "aiter has no launch configuration for its MHA elsewhere."))
    if request.softcap is not None:
        found.append(Reason("softcap", request.softcap, "off", "aiter's MHA kernel has none."))
    if request.seqlens_k is not None:
        found.append(Reason("seqlens_k", request.seqlens_k, "off", "aiter's MHA kernel takes no padded batch."))
    found += _window_reasons(request, installed)
    if request.sinks is not None and holds("triton-mha-no-sinks", installed):
        found.append(Reason("sinks", request.sinks, "off", "This release's MHA kernel has none; a newer aiter has."))
    if (
        request.sinks is not None
        and request.sinks.requires_grad
        and (holds("triton-mha-no-sinks", installed) or holds("triton-sinks-gradient-noise", installed))
    ):
        hint = "Releases before 0.1.14 compute it from the rounded output."
        found.append(Reason("grad_sinks", "required", "forward only", hint))
    found += _headdim_reasons(request, installed)
    return found


def _configured(arch: str | None, installed: Installation) -> bool:
    """Whether this installation has a launch configuration for the arch."""
    if arch not in ARCHS or installed.layout not in ARCHS[arch].triton_mha:
        return False
    missing = f"triton-no-config-{arch}"
    return missing not in RULES or not holds(missing, installed)


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


def _headdim_reasons(request: Request, installed: Installation) -> list[Reason]:
    headdim, headdim_v = request.headdim, request.headdim_v
    if request.any_grad and headdim % 8 != 0:
        hint = "aiter pads the head and hands back gradients of the padded width: pad q, k and v yourself."
        return [Reason("headdim", headdim, "a multiple of 8 where gradients are wanted", hint)]
    if headdim != headdim_v and not (_is_width(headdim_v) and _is_width(headdim - headdim_v)):
        want = "headdim, or less by a power of 2 and itself one, both from 16 on (192 and 128)"
        return [Reason("headdim_v", headdim_v, want)]
    if headdim != headdim_v and request.dtype == torch.float32 and _too_large(request.arch, installed):
        hint = "In float32 the kernel asks for 128 KiB of LDS, and the GPU has 64."
        return [Reason("headdim_v", headdim_v, "headdim in float32", hint)]
    return []


def _too_large(arch: str | None, installed: Installation) -> bool:
    return arch == "gfx942" and holds("triton-float32-two-headdims-lds", installed)


def _is_width(size: int) -> bool:
    return size >= 16 and size & (size - 1) == 0


class _LikeOut(Function):
    """out as it is, and its gradient in out's own layout: aiter's backward reads the one with the other's strides, and
    the gradient of out.sum() has none."""

    @staticmethod
    def forward(ctx: Any, out: Tensor) -> Tensor:
        return out.view_as(out)

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> Tensor:
        return dout.contiguous()


def plan(request: Request, installed: Installation) -> Plan:
    left, right = band(request)
    first, dead = first_seen(request), dead_rows(request)
    causal, scale, return_lse, grad = right == 0, request.softmax_scale, request.return_lse, request.any_grad
    options: dict[str, object] = {} if left is None else {"window_size": (left, -1)}
    align_dout = grad and holds("triton-backward-strides", installed)
    nheads = request.nheads
    module = vendor.module(_MODULES[installed.layout])
    kernel = module.flash_attn_func

    def run(
        q: Tensor, k: Tensor, v: Tensor, *, sinks: Tensor | None = None, alibi_slopes: Tensor | None = None
    ) -> Tensor | AttentionOutput:
        _check_switches(module, grad)
        if first:
            k, v = k[:, first:], v[:, first:]
        given = dict(options)
        if sinks is not None:
            given["sink"] = sinks.contiguous()
        if alibi_slopes is not None:
            given["alibi_slopes"] = alibi_slopes.expand(q.shape[0], nheads)
        returned = kernel(q, k, v, softmax_scale=scale, causal=causal, return_lse=return_lse, **given)
        if not return_lse:
            out = returned.contiguous()
            return _LikeOut.apply(out) if align_dout else out  # type: ignore[no-any-return, no-untyped-call]
        out, lse = returned
        if dead:
            # aiter says 0 there.
            bury(out, lse, dead, sinks)
        return AttentionOutput(out.contiguous(), lse)

    return run


def _check_switches(module: ModuleType, grad: bool) -> None:
    """aiter's switches change the kernels of the whole process: one drops sinks and windows, one computes garbage for
    dk and dv of causal calls."""
    if getattr(module, "_MHA_IMPL", "default") != "default":
        raise RuntimeError(f"aiter's mha_set_impl({module._MHA_IMPL!r}) is on; xattn knows its default kernels alone")
    if grad and module._USE_FUSED_BWD_KERNEL:
        raise RuntimeError(
            "aiter's fused backward is on (mha_set_use_fused_bwd_kernel), which is wrong for causal calls"
        )
