"""`varlen_attention` by FlashAttention-3: what it serves, and its plan. Nothing is read from the device."""

from __future__ import annotations

import torch
from torch import Tensor

from xattn import AttentionOutput, Capabilities, Reason, VarlenKernel, VarlenRequest
from xattn.plugin import Plan
from xattn.plugin.symbolic import holds
from xattn_nvidia.fa3 import limits, vendor
from xattn_nvidia.fa3.attention.torch_ops import signed
from xattn_nvidia.fa3.installation import ARCHS, has, installation, usable
from xattn_nvidia.fa3.varlen_attention.sequences import contained, with_padding

# Up to so many queries a call may be split over its keys, each split with an out of its own in float32.
SPLIT_TOKENS = 512


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
        found = limits.traced_reasons()
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
        ]

    def plan(self, request: VarlenRequest) -> Plan:
        left, right = request.band
        scale, softcap, return_lse = request.softmax_scale, request.softcap or 0.0, request.return_lse
        splits = 1 if request.deterministic else 0

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
            if 0 in (len(q), len(k), len(cu_seqlens_q) - 1, max_seqlen_q, max_seqlen_k):
                # Sizes that change from call to call: the request knows their next powers of two alone.
                out = q.new_zeros(*q.shape[:2], v.shape[2])
                lse = torch.full((q.shape[1], len(q)), -torch.inf, device=q.device)
                return AttentionOutput(out, lse) if return_lse else out
            ends_q, ends_k, bound = with_padding(cu_seqlens_q, cu_seqlens_k, len(q), max_seqlen_q)
            k, v = contained(k, v)
            q, positive = signed(q, scale)
            out, lse = vendor.forward(
                q, k, v, scale=positive, left=left, right=right, softcap=softcap,
                splits=splits if len(q) <= SPLIT_TOKENS else 1, cu_seqlens=(ends_q, ends_k),
                max_seqlen=(bound, max_seqlen_k),
            )  # fmt: skip
            return AttentionOutput(out, lse) if return_lse else out

        return run

    def kernel_name(self, request: VarlenRequest) -> str:
        splits = limits.UNSPLIT if request.deterministic else ""
        return f"FlashAttention-3 over packed sequences{splits} ({usable().package})"
