"""`pa_prefill`, context attention: any mix of queries, over the keys in pages and the new ones apart."""

from __future__ import annotations

import torch
from torch import Tensor

from xattn import Capabilities, PagedBatch, PagedRequest, Reason
from xattn.plugin import Plan
from xattn_rocm import vendor
from xattn_rocm.aiter_triton.paged_attention.kernel import CHECKED, TritonPaged, once, wide
from xattn_rocm.aiter_triton.paged_attention.parts import in_parts
from xattn_rocm.installation import Installation, triton_name


class PrefillPaged(TritonPaged):
    name = "pa_prefill"
    function = "pa_prefill.context_attention_fwd"
    capabilities = (
        Capabilities(
            device="rocm",
            dtypes=frozenset({torch.float32, torch.float16, torch.bfloat16}),
            features=frozenset(
                {"causal", "bottom_right", "gqa", "alibi_slopes", "stale_pages", "out_dtype", "deterministic"}
            ),
            sizes={"headdim": (1, 256, 1)},
            priority={"default": 60},
            checked=CHECKED,
        ),
    )

    def stops(self, request: PagedRequest, installed: Installation) -> list[Reason]:
        return scale_reasons(request)

    def launch(self, request: PagedRequest, installed: Installation) -> Plan:
        kernel = vendor.module(triton_name(installed, "pa_prefill")).context_attention_fwd
        scale, dtype, block_size = request.softmax_scale, request.out_dtype or request.dtype, request.block_size

        def run(
            q: Tensor, k_cache: Tensor, v_cache: Tensor, batch: PagedBatch, *, alibi_slopes: Tensor | None = None
        ) -> Tensor:
            total_q = q.shape[0]
            parts = once(batch, ("aiter parts", total_q, block_size), lambda: in_parts(batch, total_q, block_size))
            out = torch.empty(q.shape, dtype=dtype, device=q.device)
            kernel(
                q=q,
                k=parts.new(k_cache),
                v=parts.new(v_cache),
                o=out,
                kv_cache_dtype="auto",
                k_cache=vectorised(k_cache),
                v_cache=v_cache.permute(0, 2, 3, 1),
                b_loc=wide(parts.table, k_cache, v_cache),
                b_start_loc=parts.starts,
                b_seq_len=parts.lengths,
                max_input_len=batch.max_seqlen_q,
                k_scale=None,
                v_scale=None,
                alibi_slopes=None if alibi_slopes is None else alibi_slopes.contiguous(),
                sm_scale=scale,
            )
            return out.masked_fill_(parts.without[:, None, None], 0)

        return run


def scale_reasons(request: PagedRequest) -> list[Reason]:
    if request.softmax_scale > 0:
        return []
    return [Reason("scale", request.softmax_scale, "above 0", "Keys past the last are hidden before they are scaled.")]


def vectorised(k_cache: Tensor) -> Tensor:
    """The layout (num_blocks, nheads_k, headdim / x, block_size, x), as a view: x is the whole of headdim."""
    return k_cache.transpose(1, 2).unsqueeze(2)
