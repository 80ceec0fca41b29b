"""`varlen_attention` by cuDNN's frontend: what it serves, and its plan. Nothing is read from the device."""

from __future__ import annotations

import torch
from torch import Tensor

from xattn import AttentionOutput, Capabilities, Reason, VarlenKernel, VarlenRequest
from xattn.plugin import Plan
from xattn.plugin.symbolic import holds
from xattn_nvidia.cudnn import ops
from xattn_nvidia.cudnn.attention import CHECKED
from xattn_nvidia.cudnn.installation import ARCHS, installation
from xattn_nvidia.shared.packed import Ends
from xattn_nvidia.shared.settings import Settings


class CudnnVarlen(VarlenKernel):
    capabilities = (
        Capabilities(
            device="cuda",
            dtypes=frozenset({torch.float16, torch.bfloat16}),
            features=frozenset({"causal", "window", "bottom_right", "gqa", "headdim_v", "return_lse", "empty"}),
            sizes={"headdim": (8, 256, 8), "headdim_v": (8, 256, 8)},
            archs=ARCHS,
            # Nearly twice as fast as torch's flash kernel; single queries would wait for the pass over all keys.
            priority={"default": 57, "decode": 44},
            checked=CHECKED,
        ),
    )

    def limits(self, request: VarlenRequest) -> list[Reason]:
        installed = installation()
        if isinstance(installed, Reason):
            return [installed]
        if any(side is not None and holds(side < 0) for side in request.band):
            return [Reason("align", "a side that ends before its diagonal", "bottom_right")]
        return []

    def plan(self, request: VarlenRequest) -> Plan:
        return_lse = request.return_lse
        settings = Settings(request.softmax_scale, *request.band, None, splits=1, deterministic=False)

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
            out, lse = ops.packed.call(q, k, v, None, ends, settings, train=False)
            return AttentionOutput(out, lse) if return_lse else out

        return run

    def kernel_name(self, request: VarlenRequest) -> str:
        return "cuDNN's attention over packed sequences, by its frontend"
