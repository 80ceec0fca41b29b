"""`attention_backward` by FlashAttention-3, whose backward takes any out and lse."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from xattn import AttentionBackwardKernel, AttentionBackwardRequest, Capabilities, Reason
from xattn.plugin import Plan
from xattn.plugin.geometry import Geometry
from xattn_nvidia.fa3 import limits, ops
from xattn_nvidia.fa3.installation import ARCHS, installation, usable
from xattn_nvidia.shared.bands import counted
from xattn_nvidia.shared.settings import Settings


class Fa3Backward(AttentionBackwardKernel):
    capabilities = (
        Capabilities(
            device="cuda",
            dtypes=frozenset({torch.float16, torch.bfloat16}),
            features=frozenset({"causal", "window", "top_left", "bottom_right", "gqa", "softcap", "deterministic"}),
            sizes={"headdim": (8, 256, 8), "headdim_v": (8, 256, 8)},
            archs=ARCHS,
            # As fast as torch's cuDNN kernel, at 16,384 tokens in 16 rows slower.
            priority={"default": 45},
            checked="run on an NVIDIA H100, torch 2.11: a build of commit 0251105a without softcap",
        ),
    )

    def limits(self, request: AttentionBackwardRequest) -> list[Reason]:
        installed = installation()
        if isinstance(installed, Reason):
            return [installed]
        if request.align == "offset":
            return []  # which is not declared
        left, right = counted(Geometry.of(request)).band
        return [
            *limits.dtype_reasons(request.dtype),
            *limits.headdim_reasons(request.headdim, request.headdim_v),
            *limits.window_reasons(left, right, request.window),
            *limits.softcap_reasons(request.softcap),
            *limits.grad_reasons(True, request.deterministic, request.headdim),
        ]

    def plan(self, request: AttentionBackwardRequest) -> Plan:
        whole = Geometry.of(request)
        first, end, seqlen_k = whole.first_k, whole.end_k, request.seqlen_k
        left, right = counted(whole).band
        settings = Settings(request.softmax_scale, left, right, request.softcap, 1, request.deterministic)

        def run(
            dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor
        ) -> tuple[Tensor, Tensor, Tensor]:
            dq, *dkv = ops.dense.share(dout, q, k[:, first:end], v[:, first:end], out, lse, settings)
            if (first, end) != (0, seqlen_k):
                dkv = [F.pad(grad, (0, 0, 0, 0, first, seqlen_k - end)) for grad in dkv]
            return dq, dkv[0], dkv[1]

        return run

    def kernel_name(self, request: AttentionBackwardRequest) -> str:
        return f"FlashAttention-3 ({usable().package})"
