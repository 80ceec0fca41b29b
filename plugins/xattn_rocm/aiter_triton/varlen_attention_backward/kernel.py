"""`mha_onekernel_bwd.flash_attn_onekernel_backward` of packed sequences: what it serves, and its plan."""

from __future__ import annotations

import torch
from torch import Tensor

from xattn import Capabilities, Reason, VarlenBackwardKernel, VarlenBackwardRequest
from xattn.plugin import Plan
from xattn_rocm.aiter_triton.attention.gradients import BACKWARD
from xattn_rocm.aiter_triton.attention.kernel import on_its_device
from xattn_rocm.aiter_triton.attention.mha import arch_reasons, headdim_reasons, lds_reasons
from xattn_rocm.aiter_triton.varlen_attention import torch_ops
from xattn_rocm.installation import Installation, installation, usable


class MhaVarlenBackward(VarlenBackwardKernel):
    capabilities = (
        Capabilities(
            device="rocm",
            dtypes=frozenset({torch.float32, torch.float16, torch.bfloat16}),
            features=frozenset({"causal", "bottom_right", "gqa", "headdim_v", "alibi_slopes", "deterministic"}),
            sizes={"headdim": (1, 256, 1), "headdim_v": (1, 256, 1)},
            priority={"default": 70},
            checked="aiter's kernel run by Triton's interpreter on a CPU; never on an AMD GPU",
        ),
    )

    def limits(self, request: VarlenBackwardRequest) -> list[Reason]:
        installed = installation()
        if isinstance(installed, Reason):
            return [installed]
        return (
            arch_reasons(request.arch, installed)
            + headdim_reasons(request, installed)
            + lds_reasons(request, installed)
        )

    def plan(self, request: VarlenBackwardRequest) -> Plan:
        run = _plan(request, usable())
        return run if torch.compiler.is_compiling() or torch.cuda.device_count() < 2 else on_its_device(run)

    def kernel_name(self, request: VarlenBackwardRequest) -> str:
        return f"{BACKWARD[usable().layout]}.flash_attn_onekernel_backward"


def _plan(request: VarlenBackwardRequest, installed: Installation) -> Plan:
    options = (request.softmax_scale, request.band[1] == 0, None, installed.layout)
    backward = torch_ops.backward()

    def run(
        dout: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        out: Tensor,
        lse: Tensor,
        cu_seqlens_q: Tensor,
        cu_seqlens_k: Tensor,
        *,
        max_seqlen_q: int,
        max_seqlen_k: int,
        alibi_slopes: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        bounds = (max_seqlen_q, max_seqlen_k)
        return backward(dout, out, lse, q, k, v, None, alibi_slopes, cu_seqlens_q, cu_seqlens_k, *bounds, *options)[:3]

    return run
