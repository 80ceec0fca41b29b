"""`mla_attention` by the `sdpa` backend: grouped attention with one head, whose values are the keys themselves.

Values as wide as keys are what torch's fused kernel takes; what they have past kv_lora_rank is cut off its output. No
latent is copied for its value.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from xattn import AttentionOutput, Capabilities, MlaKernel, MlaRequest, PagedBatch
from xattn.plugin import Plan
from xattn.plugin.quantised import FP8
from xattn.plugin.tensors import is_plain
from xattn_sdpa.attention.engine import Settings
from xattn_sdpa.mla_attention import slots
from xattn_sdpa.paged_attention import torch_ops
from xattn_sdpa.paged_attention.engine import Options

# torch's kernels choose tiles, splits and the order of a sum by the sizes of the call.
_FEATURES: frozenset[Any] = frozenset(MlaRequest.vocabulary.feature_names) - {"batch_invariant"}


class SdpaMla(MlaKernel):
    capabilities = (
        Capabilities(
            device="cpu",
            dtypes=frozenset({torch.float64, torch.float32, torch.float16, torch.bfloat16}) | FP8,
            features=_FEATURES,
            checked="run on CPU, torch 2.13",
        ),
    )

    def plan(self, request: MlaRequest) -> Plan:
        settings = Settings(None, 0 if request.causal else None, None, request.scale, request.softcap)
        rank, return_lse, out_dtype = request.kv_lora_rank, request.return_lse, request.out_dtype

        def run(
            q: Tensor,
            kv_cache: Tensor,
            batch: PagedBatch,
            *,
            topk_indices: Tensor | None = None,
            sinks: Tensor | None = None,
            q_scale: Tensor | None = None,
            kv_scale: Tensor | None = None,
        ) -> Tensor | AttentionOutput:
            if q_scale is not None:
                q = q.float() * q_scale
            elif out_dtype is not None:
                q = q.to(out_dtype)
            # Without tracers the engine by itself: an operator costs 20 us a call.
            alone = not torch.compiler.is_compiling() and all(map(is_plain, (q, kv_cache)))
            if topk_indices is None:
                options = Options(sinks, k_scale=kv_scale, v_scale=kv_scale)
                over_pages = torch_ops.forward if alone else torch_ops.attend
                out, lse = over_pages(q, kv_cache, kv_cache, batch, options, settings)
            else:
                over_slots = slots.forward if alone else slots.attend
                starts = batch.cu_seqlens_q
                out, lse = over_slots(q, kv_cache, topk_indices, starts, sinks, kv_scale, settings)
            out = out[..., :rank].to(q.dtype if out_dtype is None else out_dtype).contiguous()
            return AttentionOutput(out, lse.float()) if return_lse else out

        return run

    def kernel_name(self, request: MlaRequest) -> str:
        if request.softcap is not None:
            return "blocks of matmuls over gathered latents (torch's kernels have no softcap)"
        if request.topk is not None:
            return "torch's fused CPU kernel over the latents that each query names"
        if request.max_seqlen_q == 1:
            return "torch's fused CPU kernel over 512 latents at a time, merged through lse"
        return "torch's fused CPU kernel over latents, sequence by sequence"
