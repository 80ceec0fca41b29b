"""`mha.flash_attn_varlen_func`: what it serves, and its plan."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from xattn import AttentionOutput, Capabilities, Reason, VarlenKernel, VarlenRequest
from xattn.plugin import Plan
from xattn_rocm import vendor
from xattn_rocm.aiter_triton.attention.gradients import check_switch
from xattn_rocm.aiter_triton.attention.kernel import on_its_device
from xattn_rocm.aiter_triton.attention.mha import MODULES, arch_reasons, headdim_reasons, lds_reasons, sinks_reasons
from xattn_rocm.aiter_triton.varlen_attention.sequences import fill_lse, reordered
from xattn_rocm.installation import Installation, installation, usable
from xattn_rocm.rules import holds

# More keys than a sequence can have, so that sums with it stay within 32 bits.
_ALL = 2**30


class MhaVarlen(VarlenKernel):
    capabilities = (
        Capabilities(
            device="rocm",
            dtypes=frozenset({torch.float32, torch.float16, torch.bfloat16}),
            features=frozenset(
                {
                    "causal",
                    "window",
                    "bottom_right",
                    "gqa",
                    "headdim_v",
                    "sinks",
                    "alibi_slopes",
                    "deterministic",
                    "return_lse",
                }
            ),
            sizes={"headdim": (1, 256, 1), "headdim_v": (1, 256, 1)},
            priority={"default": 70},
            checked="aiter's kernel run by Triton's interpreter on a CPU; never on an AMD GPU",
        ),
    )

    def limits(self, request: VarlenRequest) -> list[Reason]:
        installed = installation()
        if isinstance(installed, Reason):
            return [installed]
        return (
            _traced_reasons()
            + _window_reasons(request, installed)
            + sinks_reasons(request, installed)
            + arch_reasons(request.arch, installed)
            + headdim_reasons(request, installed)
            + lds_reasons(request, installed)
        )

    def plan(self, request: VarlenRequest) -> Plan:
        run = _plan(request, usable())
        return run if torch.cuda.device_count() < 2 else on_its_device(run)

    def kernel_name(self, request: VarlenRequest) -> str:
        return f"{MODULES[usable().layout].removesuffix('.mha')}.mha.flash_attn_varlen_func"


def _traced_reasons() -> list[Reason]:
    if not torch.compiler.is_compiling():
        return []
    return [Reason("torch.compile", True, "an eager call", "aiter's Python is not traced; call it outside the graph.")]


def _window_reasons(request: VarlenRequest, installed: Installation) -> list[Reason]:
    left, right = request.band
    if right not in (None, 0):
        return [Reason("window", request.window, "nothing to the right", "aiter's MHA kernel has left windows alone.")]
    if left is None:
        return []
    if holds("triton-mha-no-window", installed):
        return [Reason("window", request.window, "off", "This release's MHA kernel has none; a newer aiter has.")]
    if left == 0:
        # The kernel takes 0 for no window at all.
        return [Reason("window", request.window, "at least one key to the left", "Use another backend for it.")]
    return []


def _plan(request: VarlenRequest, installed: Installation) -> Plan:
    left, right = request.band
    # A single query sees all keys either way.
    causal = right == 0 and request.max_seqlen_q > 1
    options: dict[str, Any] = {"softmax_scale": request.softmax_scale, "causal": causal, "return_lse": True}
    if left is not None:
        left = min(left, _ALL)
        options["window_size"] = (left, -1)
    module = vendor.module(MODULES[installed.layout])
    return_lse, nheads = request.return_lse, request.nheads
    # aiter pads other heads, and returns a view of the padded output.
    cut = request.headdim % 8 != 0

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
        check_switch(module)
        given = dict(options)
        if sinks is not None:
            given["sink"] = sinks.contiguous()
        if alibi_slopes is not None:
            alibi_slopes = alibi_slopes.expand(len(cu_seqlens_q) - 1, nheads)
        # The kernel reads them without a stride.
        at_q, at_k = cu_seqlens_q.contiguous(), cu_seqlens_k.contiguous()
        if causal or left is not None:
            at_q, at_k, order = reordered(at_q, at_k, left)
            if alibi_slopes is not None:
                alibi_slopes = alibi_slopes[order].repeat_interleave(2, 0)
        out, lse = module.flash_attn_varlen_func(
            q, k, v, at_q, at_k, max_seqlen_q, max_seqlen_k, alibi_slopes=alibi_slopes, **given
        )
        if cut:
            out = out.contiguous()
        if not return_lse:
            return out  # type: ignore[no-any-return]
        fill_lse(lse, cu_seqlens_q, cu_seqlens_k, causal, sinks)
        return AttentionOutput(out, lse.t())

    return run
