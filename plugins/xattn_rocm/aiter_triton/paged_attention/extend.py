"""`extend_attention`: any mix of queries, over a pool without pages and the new keys apart. It has headdim_v."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from xattn import Capabilities, PagedBatch, PagedRequest, Reason
from xattn.plugin import Plan
from xattn_rocm import vendor
from xattn_rocm.aiter_triton.paged_attention.kernel import CHECKED, TritonPaged, once
from xattn_rocm.aiter_triton.paged_attention.pages import steps
from xattn_rocm.aiter_triton.paged_attention.parts import in_parts
from xattn_rocm.aiter_triton.paged_attention.tree import flattened
from xattn_rocm.installation import Installation, triton_name

# Those that aiter has launch configurations of the kernel for.
_ARCHS = frozenset({"gfx942", "gfx950"})


class ExtendPaged(TritonPaged):
    name = "extend"
    function = "extend_attention.extend_attention_fwd"
    capabilities = (
        Capabilities(
            device="rocm",
            dtypes=frozenset({torch.float32, torch.float16, torch.bfloat16}),
            features=frozenset(
                {
                    "causal",
                    "bottom_right",
                    "gqa",
                    "headdim_v",
                    "softcap",
                    "tree_mask",
                    "stale_pages",
                    "out_dtype",
                    "deterministic",
                }
            ),
            archs=_ARCHS,
            sizes={"headdim": (1, 256, 1), "headdim_v": (1, 256, 1)},
            priority={"default": 55},
            checked=CHECKED,
        ),
    )

    def stops(self, request: PagedRequest, installed: Installation) -> list[Reason]:
        found = []
        tile = 32 if request.dtype == torch.float32 or request.headdim > 192 else 64
        if request.tree_mask is not None and request.max_seqlen_q > tile:
            hint = "A query that sees no key of the kernel's first tile comes out as NaN."
            found.append(Reason("tree_mask", request.tree_mask, f"at most {tile} new tokens a sequence", hint))
        if request.softmax_scale == 0:
            found.append(Reason("scale", 0.0, "another number", "aiter's extend takes 0 for its default."))
        wide = request.headdim != 192 and min(request.headdim, request.headdim_v) > 128
        if wide and request.dtype == torch.float32 and request.arch == "gfx942":
            hint = "In float32 the kernel asks for 68 KiB of LDS, and this GPU has 64."
            found.append(Reason("headdim", request.headdim, "at most 128 in float32", hint))
        return found

    def launch(self, request: PagedRequest, installed: Installation) -> Plan:
        kernel = vendor.module(triton_name(installed, "extend_attention")).extend_attention_fwd
        scale, softcap, block_size = request.softmax_scale, request.softcap or 0.0, request.block_size
        dtype, nheads, headdim_v = request.out_dtype or request.dtype, request.nheads, request.headdim_v

        def run(
            q: Tensor, k_cache: Tensor, v_cache: Tensor, batch: PagedBatch, *, tree_mask: Tensor | None = None
        ) -> Tensor:
            total_q = q.shape[0]
            if steps(k_cache)[:2] != steps(v_cache)[:2]:
                # One list of places cannot lead through both.
                k_cache, v_cache = k_cache.contiguous(), v_cache.contiguous()
            page, row, _ = steps(k_cache)
            parts = once(batch, ("aiter parts", total_q, block_size), lambda: in_parts(batch, total_q, block_size))
            whole = tree_mask is not None
            key = ("aiter prefix", block_size, page, row, whole)
            at, places = once(batch, key, lambda: _prefix(batch, block_size, page, row, whole))
            k, v = parts.new(k_cache), parts.new(v_cache)
            starts, dead = parts.starts, parts.without
            # A custom mask beside is_causal is half of one (extend-mask-beside-causal).
            mask: tuple[Tensor | None, bool, Tensor | None] = (None, True, None)
            if tree_mask is not None:
                # Kept with the tensor that it is of, so that no other has its id.
                named = ("aiter tree", id(tree_mask), tree_mask._version)
                tree = once(batch, named, lambda: (tree_mask, flattened(batch, tree_mask, parts)))[1]
                starts, mask, dead = batch.starts_q.contiguous(), (tree.mask, False, tree.at), tree.dead
                v = v.masked_fill(tree.hidden[:, None, None], 0)
            out = torch.empty((total_q, nheads, headdim_v), dtype=dtype, device=q.device)
            kernel(
                q, k, v, out, _flat(k_cache), _flat(v_cache), starts, at, places, *mask, batch.max_seqlen_q,
                sm_scale=scale, logit_cap=softcap,
            )  # fmt: skip
            return out.masked_fill_(dead[:, None, None], 0)

        return run


def _flat(cache: Tensor) -> Tensor:
    """The pool as rows, a unit of `steps` from each other: all that the kernel asks of it."""
    return cache.as_strided((1, *cache.shape[2:]), (steps(cache)[2], *cache.stride()[2:]))


def _prefix(batch: PagedBatch, block_size: int, page: int, row: int, whole: bool) -> tuple[Tensor, Tensor]:
    """kv_indptr, (2 batch + 1,) by parts or (batch + 1,) of whole sequences, and kv_indices: where the keys before the
    new ones lie, in units, sequence after sequence. page, row: how far two pages, and two keys in one, lie from each
    other."""
    lengths = (batch.seqlens_k - batch.seqlens_q).clamp_min(0)
    ends = lengths.cumsum(0, dtype=torch.int32)
    n = torch.arange(batch.batch * batch.max_seqlen_k, dtype=torch.int32, device=ends.device)
    sequence = torch.searchsorted(ends, n, right=True).clamp_max(batch.batch - 1)
    key = n - (ends - lengths)[sequence]
    column = (key // block_size).clamp_max(batch.block_table.shape[1] - 1)
    places = batch.block_table[sequence, column].long() * page + (key % block_size) * row
    # The first part of a sequence has no keys.
    at = ends if whole else torch.stack((ends - lengths, ends), 1).flatten()
    return F.pad(at, (1, 0)), places
