"""`attention_backward` by the backward engine of `attention`, which takes any out and lse: a tile's weights are
exp(score - lse), whatever else the softmax ran over."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from xattn import AttentionBackwardKernel, AttentionBackwardRequest, Capabilities
from xattn.plugin import Plan
from xattn_sdpa.attention.masks import with_four
from xattn_sdpa.attention.torch_ops import share

# torch's kernels choose tiles, splits and the order of a sum by the sizes of the call.
_FEATURES: frozenset[Any] = frozenset(AttentionBackwardRequest.vocabulary.feature_names) - {"batch_invariant"}
_FLOATS = frozenset({torch.float64, torch.float32, torch.float16, torch.bfloat16})


class SdpaBackward(AttentionBackwardKernel):
    capabilities = (
        Capabilities(device="cpu", dtypes=_FLOATS, features=_FEATURES, checked="run on CPU, torch 2.13"),
        Capabilities(
            device="cuda",
            dtypes=_FLOATS,
            # seqlens_k would have to be read, and torch's fused backward adds up dq in no fixed order.
            features=_FEATURES - {"seqlens_k", "deterministic"},
            checked="run on an NVIDIA H100, torch 2.11",
        ),
    )

    def plan(self, request: AttentionBackwardRequest) -> Plan:
        left, right = request.band

        def run(
            dout: Tensor,
            q: Tensor,
            k: Tensor,
            v: Tensor,
            out: Tensor,
            lse: Tensor,
            *,
            alibi_slopes: Tensor | None = None,
            bias: Tensor | None = None,
            mask: Tensor | None = None,
            seqlens_k: Tensor | None = None,
            align: int | None = None,
        ) -> tuple[Tensor, Tensor, Tensor]:
            offset = 0 if request.align == "top_left" else align
            tensors = (q, k, v, None, alibi_slopes, with_four(bias), with_four(mask), seqlens_k)
            return share(dout, out, lse, tensors, left, right, offset, request.softmax_scale, request.softcap)

        return run

    def kernel_name(self, request: AttentionBackwardRequest) -> str:
        masked = request.mask is not None or request.bias is not None or request.alibi_slopes is not None
        if request.softcap is not None or (request.device != "cpu" and masked):
            return "blocks of matmuls"
        how = "tile by tile" if request.device == "cpu" else "or blocks of matmuls"
        return f"torch's fused kernel, {how}"
