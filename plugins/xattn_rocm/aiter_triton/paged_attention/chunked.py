"""`chunked_prefill_paged_decode`: chunks by context attention, and single queries by a kernel of their own."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from xattn import Capabilities, PagedBatch, PagedRequest, Reason
from xattn.plugin import Plan
from xattn_rocm import vendor
from xattn_rocm.aiter_triton.paged_attention.kernel import CHECKED, TritonPaged, once, page_reasons, wide
from xattn_rocm.aiter_triton.paged_attention.parts import Parts, in_parts
from xattn_rocm.aiter_triton.paged_attention.prefill import scale_reasons, vectorised
from xattn_rocm.installation import Installation, triton_name


class ChunkedPaged(TritonPaged):
    name = "chunked_prefill"
    function = "chunked_pa_prefill.chunked_prefill_paged_decode"
    capabilities = (
        Capabilities(
            device="rocm",
            # The kernel of single queries rounds each product of a query and a key to their dtype.
            dtypes=frozenset({torch.float32}),
            # It loads pages whole, so what no query sees must be finite.
            features=frozenset({"causal", "bottom_right", "gqa", "alibi_slopes", "deterministic"}),
            sizes={"headdim": (1, 256, 1)},
            priority={"default": 62},
            checked=CHECKED,
        ),
    )

    def stops(self, request: PagedRequest, installed: Installation) -> list[Reason]:
        return page_reasons(request, 256) + scale_reasons(request)

    def launch(self, request: PagedRequest, installed: Installation) -> Plan:
        kernel = vendor.module(triton_name(installed, "chunked_pa_prefill")).chunked_prefill_paged_decode
        scale, block_size = request.softmax_scale, request.block_size

        def run(
            q: Tensor, k_cache: Tensor, v_cache: Tensor, batch: PagedBatch, *, alibi_slopes: Tensor | None = None
        ) -> Tensor:
            total_q = q.shape[0]
            out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
            if total_q == 0:
                return out
            key = ("aiter chunks", total_q, block_size)
            parts = once(batch, key, lambda: _without_idle(in_parts(batch, total_q, block_size)))
            kernel(
                query=q,
                key=parts.new(k_cache),
                value=parts.new(v_cache),
                output=out,
                kv_cache_dtype="auto",
                key_cache=vectorised(k_cache),
                value_cache=v_cache.permute(0, 2, 3, 1),
                block_table=wide(parts.table, k_cache, v_cache),
                query_start_loc=parts.starts,
                seq_lens=parts.lengths,
                max_query_len=batch.max_seqlen_q,
                k_scale=None,
                v_scale=None,
                alibi_slopes=None if alibi_slopes is None else alibi_slopes.contiguous(),
                sm_scale=scale,
            )
            return out.masked_fill_(parts.without[:, None, None], 0)

        return run


def _without_idle(parts: Parts) -> Parts:
    """The same, with those that have no queries before all others, as a part of the first that has.

    The kernel of single queries writes the row of q at which a part begins, be it another's. So they write row 0, whose
    answer it is: the keys that the first query of that part sees.
    """
    counts = parts.starts.diff()
    idle = counts == 0
    order = idle.argsort(descending=True, stable=True)
    # The first that has queries comes after those that have none.
    first = order[idle.sum().clamp_max(len(order) - 1).unsqueeze(0)]
    seen = (parts.lengths[first] - counts[first] + 1).clamp_min(0).masked_fill(idle[first], 0)
    return replace(
        parts,
        starts=torch.cat((parts.starts[:-1].masked_fill(idle, 0)[order], parts.starts[-1:])),
        lengths=torch.where(idle, seen, parts.lengths)[order],
        table=parts.table[torch.where(idle, first, torch.arange(len(idle), device=idle.device))[order]],
    )
