"""`varlen_attention` by FlashAttention-3: what it serves, and its plan. Nothing is read from the device."""

from __future__ import annotations

import torch
from torch import Tensor

from xattn import AttentionOutput, Capabilities, Reason, VarlenKernel, VarlenRequest
from xattn.plugin import Plan
from xattn.plugin.symbolic import holds
from xattn_nvidia.fa3 import limits, ops, vendor
from xattn_nvidia.fa3.installation import ARCHS, has, installation, usable
from xattn_nvidia.shared.packed import Ends
from xattn_nvidia.shared.settings import Settings


class Fa3Varlen(VarlenKernel):
    capabilities = (
        Capabilities(
            device="cuda",
            dtypes=frozenset({torch.float16, torch.bfloat16}),
            features=frozenset(
                {
                    "causal",
                    "window",
                    "bottom_right",
                    "gqa",
                    "headdim_v",
                    "softcap",
                    "deterministic",
                    "return_lse",
                    "empty",
                }
            ),
            grads=frozenset({"qkv"}),
            sizes={"headdim": (8, 256, 8), "headdim_v": (8, 256, 8)},
            archs=ARCHS,
            # Single queries would wait for the pass over all keys and values (`contained`).
            priority={"default": 60, "decode": 45},
            checked="run on an NVIDIA H100, torch 2.11: fa3-fwd 0.0.3, and a build of commit 0251105a without softcap",
        ),
    )

    def limits(self, request: VarlenRequest) -> list[Reason]:
        installed = installation()
        if isinstance(installed, Reason):
            return [installed]
        found = []
        if not has("VARLEN"):
            found.append(Reason("op", "varlen_attention", "attention", limits.BUILT))
        if holds(request.batch > vendor.MOST_SEQUENCES):
            want = f"at most {vendor.MOST_SEQUENCES} sequences"
            found.append(Reason("batch", request.batch, want, "Call it with some of them at a time."))
        return [
            *found,
            *limits.dtype_reasons(request.dtype),
            *limits.headdim_reasons(request.headdim, request.headdim_v),
            *limits.window_reasons(*request.band, request.window),
            *limits.softcap_reasons(request.softcap),
            *limits.grad_reasons(request.any_grad, request.deterministic, max(request.headdim, request.headdim_v)),
        ]

    def plan(self, request: VarlenRequest) -> Plan:
        return_lse, train = request.return_lse, request.any_grad
        splits = 1 if request.deterministic or train else 0
        settings = Settings(request.softmax_scale, *request.band, request.softcap, splits, request.deterministic)

        def run(
            q: Tensor,
            k: Tensor,
            v: Tensor,
            cu_seqlens_q: Tensor,
            cu_seqlens_k: Tensor,
            *,
            max_seqlen_q: int,
            max_seqlen_k: int,
        ) -> Tensor | AttentionOutput:
            ends = Ends(cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
            out, lse = ops.packed.call(q, k, v, None, ends, settings, train=train)
            return AttentionOutput(out, lse) if return_lse else out

        return run

    def kernel_name(self, request: VarlenRequest) -> str:
        splits = limits.UNSPLIT if request.deterministic or request.any_grad else ""
        return f"FlashAttention-3 over packed sequences{splits} ({usable().package})"
