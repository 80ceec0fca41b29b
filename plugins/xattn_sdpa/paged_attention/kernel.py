"""`paged_attention` by the `sdpa` backend: what it declares, and its plan."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from xattn import AttentionOutput, Capabilities, PagedBatch, PagedKernel, PagedRequest, Reason
from xattn.plugin import Plan
from xattn.plugin.tensors import is_plain
from xattn_sdpa.attention.engine import Settings
from xattn_sdpa.paged_attention import torch_ops
from xattn_sdpa.paged_attention.engine import Options
from xattn_sdpa.varlen_attention import flash

# torch's kernels choose tiles, splits and the order of a sum by the sizes of the call.
_FEATURES: frozenset[Any] = frozenset(PagedRequest.vocabulary.feature_names) - {"q_scale", "format", "batch_invariant"}


class SdpaPaged(PagedKernel):
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
            # What the kernel lacks: see `varlen_attention`. Its results are of the dtype of q.
            features=_FEATURES - {"softcap", "alibi_slopes", "tree_mask", "top_left", "offset", "offsets", "out_dtype"},
            sizes={"headdim": (1, 256, 1), "headdim_v": (1, 256, 1)},
            checked="run on an NVIDIA H100, torch 2.11",
        ),
    )

    def limits(self, request: PagedRequest) -> list[Reason]:
        return flash.limits(request.arch, request.batch) if request.device == "cuda" else []

    def plan(self, request: PagedRequest) -> Plan:
        left, right = request.band
        offset = 0 if request.align == "top_left" else None
        settings = Settings(left, right, offset, request.softmax_scale, request.softcap)
        return_lse, out_dtype = request.return_lse, request.out_dtype

        def run(
            q: Tensor,
            k_cache: Tensor,
            v_cache: Tensor,
            batch: PagedBatch,
            *,
            sinks: Tensor | None = None,
            alibi_slopes: Tensor | None = None,
            tree_mask: Tensor | None = None,
            k_scale: Tensor | None = None,
            v_scale: Tensor | None = None,
            align: int | Tensor | None = None,
        ) -> Tensor | AttentionOutput:
            own = settings if align is None or isinstance(align, Tensor) else replace(settings, offset=align)
            offsets = align if isinstance(align, Tensor) else None
            options = Options(sinks, alibi_slopes, tree_mask, offsets, k_scale, v_scale)
            if out_dtype is not None:
                q = q.to(out_dtype)
            # Without tracers the engine by itself: an operator costs 20 us a call.
            alone = not torch.compiler.is_compiling() and all(map(is_plain, (q, k_cache, v_cache)))
            forward = torch_ops.forward if alone else torch_ops.attend
            out, lse = forward(q, k_cache, v_cache, batch, options, own)
            return AttentionOutput(out, lse.float()) if return_lse else out

        return run

    def kernel_name(self, request: PagedRequest) -> str:
        if request.device == "cuda":
            return "torch's flash kernel over gathered pages"
        if request.softcap is not None:
            return "blocks of matmuls, sequence by sequence (torch's kernels have no softcap)"
        if request.max_seqlen_q == 1:
            if request.k_scale is not None:
                return "torch's fused CPU kernel, over 512 keys at a time, made numbers as they are gathered"
            return "torch's fused CPU kernel, over the pool or 512 gathered keys at a time, merged through lse"
        return "torch's fused CPU kernel, sequence by sequence"
