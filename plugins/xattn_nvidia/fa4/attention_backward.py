"""`attention_backward` by FlashAttention-4, whose backward takes any out and lse."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from xattn import AttentionBackwardKernel, AttentionBackwardRequest, Capabilities, Reason
from xattn.plugin import Plan
from xattn.plugin.geometry import Geometry
from xattn_nvidia.fa4 import limits, ops
from xattn_nvidia.fa4.installation import ARCHS, installation
from xattn_nvidia.shared.bands import counted
from xattn_nvidia.shared.settings import Settings


class Fa4Backward(AttentionBackwardKernel):
    capabilities = (
        Capabilities(
            device="cuda",
            dtypes=frozenset({torch.float16, torch.bfloat16}),
            features=frozenset(
                {"causal", "window", "top_left", "bottom_right", "gqa", "headdim_v", "softcap", "deterministic"}
            ),
            sizes={"headdim": (8, 256, 8), "headdim_v": (8, 256, 8)},
            archs=ARCHS,
            priority={"default": 45},
            checked=limits.CHECKED,
        ),
    )

    def limits(self, request: AttentionBackwardRequest) -> list[Reason]:
        installed = installation()
        if isinstance(installed, Reason):
            return [installed]
        if request.align == "offset":
            return []  # which is not declared
        return [
            *limits.side_reasons(*counted(Geometry.of(request)).band),
            *limits.batch_reasons(request.batch),
            *limits.headdim_reasons(request.headdim, request.headdim_v, group=request.group, grads=True),
        ]

    def plan(self, request: AttentionBackwardRequest) -> Plan:
        whole = Geometry.of(request)
        first, end, seqlen_k = whole.first_k, whole.end_k, request.seqlen_k
        settings = Settings(
            request.softmax_scale, *counted(whole).band, request.softcap, splits=1, deterministic=request.deterministic
        )
        kind = ops.kind(request)

        def run(
            dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor
        ) -> tuple[Tensor, Tensor, Tensor]:
            dq, *dkv = ops.dense.share(dout, q, k[:, first:end], v[:, first:end], out, lse, settings)
            ops.built.add(kind)
            if (first, end) != (0, seqlen_k):
                dkv = [F.pad(grad, (0, 0, 0, 0, first, seqlen_k - end)) for grad in dkv]
            return dq, dkv[0], dkv[1]

        return run

    def unbuilt(self, request: AttentionBackwardRequest) -> str | None:
        return ops.unbuilt(request)

    def kernel_name(self, request: AttentionBackwardRequest) -> str:
        return "FlashAttention-4"
