"""`varlen_attention_backward` by the backward engine of `attention`, a run of equal sequences at a time."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from xattn import Capabilities, Reason, VarlenBackwardKernel, VarlenBackwardRequest
from xattn.plugin import Plan
from xattn_sdpa.attention.engine import Settings
from xattn_sdpa.varlen_attention import flash
from xattn_sdpa.varlen_attention.torch_ops import share

# torch's kernels choose tiles, splits and the order of a sum by the sizes of the call.
_FEATURES: frozenset[Any] = frozenset(VarlenBackwardRequest.vocabulary.feature_names) - {"batch_invariant"}


class SdpaVarlenBackward(VarlenBackwardKernel):
    capabilities = (
        Capabilities(
            device="cpu",
            dtypes=frozenset({torch.float64, torch.float32, torch.float16, torch.bfloat16}),
            features=_FEATURES,
            checked="run on CPU, torch 2.13",
        ),
        Capabilities(
            device="cuda",
            dtypes=frozenset({torch.float16, torch.bfloat16}),
            # torch's fused backward adds up dq in no fixed order.
            features=frozenset({"causal", "window", "bottom_right", "gqa", "headdim_v", "empty"}),
            sizes={"headdim": (1, 256, 1), "headdim_v": (1, 256, 1)},
            checked="run on an NVIDIA H100, torch 2.11",
        ),
    )

    def limits(self, request: VarlenBackwardRequest) -> list[Reason]:
        return flash.limits(request.arch, request.batch) if request.device == "cuda" else []

    def plan(self, request: VarlenBackwardRequest) -> Plan:
        left, right = request.band
        offset = 0 if request.align == "top_left" else None
        settings = Settings(left, right, offset, request.softmax_scale, request.softcap)

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
            align: int | Tensor | None = None,
        ) -> tuple[Tensor, Tensor, Tensor]:
            one = settings if align is None or isinstance(align, Tensor) else replace(settings, offset=align)
            each = align if isinstance(align, Tensor) else None
            tensors = (q, k, v, None, alibi_slopes, cu_seqlens_q, cu_seqlens_k, each)
            return share(dout, out, lse, tensors, (max_seqlen_q, max_seqlen_k), one)

        return run

    def kernel_name(self, request: VarlenBackwardRequest) -> str:
        if request.device == "cuda":
            return flash.NAME
        return "blocks of matmuls" if request.softcap is not None else "torch's fused CPU kernel, tile by tile"
