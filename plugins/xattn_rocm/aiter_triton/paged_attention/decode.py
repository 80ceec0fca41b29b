"""`pa_decode`, versions 1 and 2: one query a sequence, whose keys version 2 splits in parts of 1,024."""

from __future__ import annotations

import torch
from torch import Tensor

from xattn import Capabilities, PagedBatch, PagedRequest, Reason
from xattn.plugin import Plan
from xattn_rocm import vendor
from xattn_rocm.aiter_triton.paged_attention.kernel import CHECKED, TritonPaged, once, page_reasons, power, wide
from xattn_rocm.installation import Installation, triton_name

# Keys in a part of version 2, which has to be whole pages.
PART = 1024

# What a page of keys may have of numbers: a tile of the kernel's, in 64 KiB of LDS. Found by compiling for gfx942.
_NUMBERS = {torch.float32: 2**13, torch.float16: 2**14, torch.bfloat16: 2**14}


class DecodePaged(TritonPaged):
    name = "pa_decode"
    function = "pa_decode"
    capabilities = (
        Capabilities(
            device="rocm",
            dtypes=frozenset({torch.float32, torch.float16, torch.bfloat16}),
            features=frozenset(
                {"causal", "bottom_right", "gqa", "alibi_slopes", "stale_pages", "out_dtype", "deterministic"}
            ),
            sizes={"headdim": (1, 256, 1)},
            priority={"default": 65},
            checked=CHECKED,
        ),
    )

    def stops(self, request: PagedRequest, installed: Installation) -> list[Reason]:
        found = page_reasons(request, min(_NUMBERS[request.dtype] // power(request.headdim), PART))
        if not request.one_query:
            hint = "Row n of q is the query of sequence n."
            found.append(Reason("cu_seqlens_q", "given", "None, one query a sequence", hint))
        if request.nheads == request.nheads_k:
            hint = "aiter's kernel for one head a group loads values past the last key without saying what they are."
            found.append(Reason("nheads", request.nheads, f"more than nheads_k, {request.nheads_k}", hint))
        return found

    def kernel_name(self, request: PagedRequest) -> str:
        splits = ", which splits the keys" if _parts(request) else ""
        return f"{super().kernel_name(request)}.{_function(request)}{splits}"

    def launch(self, request: PagedRequest, installed: Installation) -> Plan:
        module = vendor.module(triton_name(installed, self.function))
        kernel = getattr(module, _function(request))
        scale, nheads_k, parts = request.softmax_scale, request.nheads_k, _parts(request)
        dtype = request.out_dtype or request.dtype
        # Parts are kept in the dtype of out (pa-decode-rounds-parts).
        within = torch.float32 if parts else dtype

        def run(
            q: Tensor, k_cache: Tensor, v_cache: Tensor, batch: PagedBatch, *, alibi_slopes: Tensor | None = None
        ) -> Tensor:
            if k_cache.stride() != v_cache.stride():
                # Values are found by the strides of keys.
                k_cache, v_cache = k_cache.contiguous(), v_cache.contiguous()
            table = once(batch, ("aiter table",), lambda: batch.block_table.contiguous())
            lengths = once(batch, ("aiter lengths",), lambda: batch.seqlens_k.contiguous())
            out = torch.empty(q.shape, dtype=within, device=q.device)
            slopes = None if alibi_slopes is None else alibi_slopes.contiguous()
            # q is multiplied by the scale in the dtype that is named (pa-decode-rounds-scaled-q). The last two numbers
            # are the scales of quantised pages, which are not served (pa-decode-drops-int8-scales).
            kernel(
                out, q, k_cache.transpose(1, 2), v_cache.transpose(1, 2), wide(table, k_cache), lengths,
                batch.max_seqlen_k, module.triton.language.float32, nheads_k, scale, slopes, 1.0, 1.0, *parts,
            )  # fmt: skip
            # 0 was divided by 0 there (pa-decode-length-0).
            return out.masked_fill_((lengths == 0)[:, None, None], 0).to(dtype)

        return run


def _parts(request: PagedRequest) -> tuple[int, ...]:
    """How many parts version 2 has, by the bound of the lengths; none where version 1 serves, as aiter decides it."""
    parts = -(-request.max_seqlen_k // PART)
    first = request.max_seqlen_k <= 8 * PART and (parts <= 1 or request.batch * request.nheads > 512)
    return () if first else (parts,)


def _function(request: PagedRequest) -> str:
    return f"paged_attn_decode_v{2 if _parts(request) else 1}"
