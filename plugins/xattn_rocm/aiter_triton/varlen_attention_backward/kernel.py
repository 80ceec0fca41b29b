"""`mha_onekernel_bwd.flash_attn_onekernel_backward` of packed sequences: what it serves, and its plan."""

from __future__ import annotations

import torch
from torch import Tensor

from xattn import Capabilities, Reason, VarlenBackwardKernel, VarlenBackwardRequest
from xattn.plugin import Plan
from xattn_rocm import vendor
from xattn_rocm.aiter_triton.attention.gradients import BACKWARD
from xattn_rocm.aiter_triton.attention.kernel import on_its_device
from xattn_rocm.aiter_triton.attention.mha import arch_reasons, headdim_reasons, lds_reasons
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
        if torch.compiler.is_compiling():
            hint = "aiter's Python is not traced; call it outside the graph."
            return [Reason("torch.compile", True, "an eager call", hint)]
        return (
            arch_reasons(request.arch, installed)
            + headdim_reasons(request, installed)
            + lds_reasons(request, installed)
        )

    def plan(self, request: VarlenBackwardRequest) -> Plan:
        run = _plan(request, usable())
        return run if torch.cuda.device_count() < 2 else on_its_device(run)

    def kernel_name(self, request: VarlenBackwardRequest) -> str:
        return f"{BACKWARD[usable().layout]}.flash_attn_onekernel_backward"


def _plan(request: VarlenBackwardRequest, installed: Installation) -> Plan:
    module = vendor.module(BACKWARD[installed.layout])
    causal, scale, nheads = request.band[1] == 0, request.softmax_scale, request.nheads

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
        # The kernel leaves rows of no sequence, and sequences without queries or keys, as they are.
        dq, dk, dv = (torch.zeros(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
        if alibi_slopes is not None:
            alibi_slopes = alibi_slopes.expand(len(cu_seqlens_q) - 1, nheads)
        # Of a query that saw no key every probability is exp(score - inf) = 0.
        rows = lse.masked_fill(lse == -torch.inf, torch.inf).t().contiguous()
        # It reads dout with the strides of out, and lse with those of a buffer of its own.
        module.flash_attn_onekernel_backward(
            dout.contiguous(), q, k, v, out.contiguous(), rows, dq, dk, dv, None, scale, alibi_slopes, causal,
            cu_seqlens_q.contiguous(), cu_seqlens_k.contiguous(), max_seqlen_q=max_seqlen_q,
            max_seqlen_k=max_seqlen_k, dropout_p=0.0, USE_INT64_STRIDES=True,
        )  # fmt: skip
        return dq, dk, dv

    return run
