"""`mha.flash_attn_varlen_func`: what it serves, and its plan."""

from __future__ import annotations

import torch
from torch import Tensor

from xattn import AttentionOutput, Capabilities, Reason, VarlenKernel, VarlenRequest
from xattn.plugin import Plan
from xattn.plugin.symbolic import holds
from xattn_rocm import rules
from xattn_rocm.aiter_triton.attention.kernel import on_its_device
from xattn_rocm.aiter_triton.attention.mha import MODULES, arch_reasons, headdim_reasons, lds_reasons, sinks_reasons
from xattn_rocm.aiter_triton.varlen_attention import torch_ops
from xattn_rocm.installation import Installation, installation, usable

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
            grads=frozenset({"qkv", "sinks"}),
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
            _window_reasons(request, installed)
            + sinks_reasons(request, installed)
            + arch_reasons(request.arch, installed)
            + headdim_reasons(request, installed)
            + lds_reasons(request, installed)
        )

    def plan(self, request: VarlenRequest) -> Plan:
        run = _plan(request, usable())
        return run if torch.compiler.is_compiling() or torch.cuda.device_count() < 2 else on_its_device(run)

    def kernel_name(self, request: VarlenRequest) -> str:
        return f"{MODULES[usable().layout].removesuffix('.mha')}.mha.flash_attn_varlen_func"


def _window_reasons(request: VarlenRequest, installed: Installation) -> list[Reason]:
    left, right = request.band
    if right not in (None, 0):
        return [Reason("window", request.window, "nothing to the right", "aiter's MHA kernel has left windows alone.")]
    if left is None:
        return []
    if request.any_grad:
        hint = "aiter's backward multiplies what lies before the window by 0, be it NaN."
        return [Reason("window", request.window, "off where gradients are wanted", hint)]
    if rules.holds("triton-mha-no-window", installed):
        return [Reason("window", request.window, "off", "This release's MHA kernel has none; a newer aiter has.")]
    if left == 0:
        # The kernel takes 0 for no window at all.
        return [Reason("window", request.window, "at least one key to the left", "Use another backend for it.")]
    return []


def _plan(request: VarlenRequest, installed: Installation) -> Plan:
    left, right = request.band
    left = None if left is None else min(left, _ALL)
    # A single query sees all keys either way.
    causal = right == 0 and not holds(request.max_seqlen_q == 1)
    options = (request.softmax_scale, causal, left, installed.layout)
    return_lse, trains, compiling = request.return_lse, request.any_grad, torch.compiler.is_compiling()
    forward = torch_ops.forward()

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
        if compiling:
            # torch.compile refuses one tensor in two places of an autograd function; a view is another tensor.
            cu_seqlens_k = cu_seqlens_k.view_as(cu_seqlens_k)
        arguments = (q, k, v, sinks, alibi_slopes, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, *options)
        if trains:
            return torch_ops.Attend.apply(*arguments)  # type: ignore[no-any-return, no-untyped-call]
        out, lse = forward(*arguments, return_lse)
        return AttentionOutput(out, lse) if return_lse else out

    return run
