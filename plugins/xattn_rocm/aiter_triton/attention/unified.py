"""`unified_attention`: aiter's kernel for paged caches, which has softcap, sinks, windows and lengths. BSNH keys and
values are pages to it as they lie (`cache`)."""

from __future__ import annotations

import torch
from torch import Tensor

from xattn import AttentionRequest, Capabilities, Reason
from xattn.plugin import Plan
from xattn.plugin.geometry import Geometry, fill_dead_rows
from xattn_rocm import vendor
from xattn_rocm.aiter_triton.attention.cache import CacheLayout, cache_layout
from xattn_rocm.aiter_triton.attention.kernel import CHECKED, TritonAttention
from xattn_rocm.archs import ARCHS
from xattn_rocm.installation import Installation
from xattn_rocm.rules import holds

MODULES = {"flat": "aiter.ops.triton.unified_attention", "attention": "aiter.ops.triton.attention.unified_attention"}
# Keys in a page. None is as many as a tile of the kernel's has (16, 32 or 64): such a page it loads whole and without a
# mask, past the last key too.
_PAGES = (128, 24, 8, 1)


class UnifiedAttention(TritonAttention):
    capabilities = (
        Capabilities(
            device="rocm",
            dtypes=frozenset({torch.float16, torch.bfloat16}),
            features=frozenset(
                {
                    "causal",
                    "window",
                    "bottom_right",
                    "offset",
                    "gqa",
                    "softcap",
                    "sinks",
                    "alibi_slopes",
                    "seqlens_k",
                    "deterministic",
                }
            ),
            sizes={"headdim": (1, 256, 1)},
            # A single query is split over the keys, which MHA does not do.
            priority={"default": 69, "decode": 71},
            checked=CHECKED,
        ),
    )
    function = "unified_attention.unified_attention"

    def stops(self, request: AttentionRequest, installed: Installation) -> list[Reason]:
        found = []
        if request.arch not in ARCHS:
            found.append(Reason("arch", request.arch, ", ".join(ARCHS), "aiter does not know it."))
        if request.arch == "gfx1250":
            hint = "There aiter has a Gluon kernel, which cannot be run anywhere else."
            found.append(Reason("arch", request.arch, "another for softcap, sinks or seqlens_k", hint))
        left, right = Geometry.of(request).opened().band
        causal = right == 0 or (right is None and request.seqlen_q == 1)
        if not causal:
            found.append(Reason("causal", False, "True, or one query", "aiter's unified_attention is always causal."))
        if request.alibi_slopes is not None:
            if len(request.alibi_slopes.shape) == 2:
                found.append(Reason("alibi_slopes", request.alibi_slopes, "(nheads,)"))
            if request.sinks is not None:
                # It adds slope * j, not slope * (j - i): the same softmax, but for the sink.
                found.append(Reason("sinks", request.sinks, "off beside alibi_slopes"))
        if request.seqlens_k is not None and left is not None:
            hint = "Keys before a window that moves with seqlens_k may hold NaN, and the kernel multiplies them by 0."
            found.append(Reason("window", request.window, "open to the left beside seqlens_k", hint))
        return found

    def launch(self, request: AttentionRequest, installed: Installation) -> Plan:
        return _plan(request, installed)


def _plan(request: AttentionRequest, installed: Installation) -> Plan:
    seqlen_q = request.seqlen_q
    whole = Geometry.of(request)
    first, dead, left = whole.first_k, whole.first_q, whole.opened().left
    seqlen_k = request.seqlen_k - first
    page, freely = _page(request, seqlen_k, installed)
    # max_seqlen_q and the window are upper bounds, by which the kernel picks its way. From 2 queries on, its tiles are
    # of 64 keys. Without a window it splits the keys into parts, with a page as its tile, and a query that sees no key
    # of a part comes out wrong.
    most = seqlen_q if freely else max(2, seqlen_q)
    split = left is None and freely and seqlen_q == 1
    window = (-1, -1) if split else (seqlen_k if left is None else left, 0)
    scale, softcap, dtype = request.softmax_scale, request.softcap or 0.0, request.dtype
    shape = (request.batch, seqlen_q, request.nheads, request.headdim)
    kernel = vendor.module(MODULES[installed.layout]).unified_attention
    ragged, on_gpu = request.seqlens_k is not None, torch.cuda.is_available()
    layouts: dict[object, CacheLayout] = {}

    def run(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        sinks: Tensor | None = None,
        alibi_slopes: Tensor | None = None,
        seqlens_k: Tensor | None = None,
    ) -> Tensor:
        if first:
            k, v = k[:, first:], v[:, first:]
        if on_gpu and torch.cuda.is_current_stream_capturing():
            # A graph may outlive the plan, so it gets tables of its own.
            layout = cache_layout(q, k, v, page)
        else:
            key = (k.stride(), v.stride(), q.device)
            found = layouts.get(key)
            layout = layouts[key] = cache_layout(q, k, v, page) if found is None else found
        if layout.copies:
            k, v = k.contiguous(), v.contiguous()
        out = torch.empty(shape, dtype=dtype, device=q.device)
        # The kernel reads these three without a stride.
        lengths = layout.lengths if seqlens_k is None else seqlens_k.to(torch.int32).contiguous()
        if sinks is not None:
            sinks = sinks.contiguous()
        elif not split:
            sinks = layout.low
        kernel(
            q=q.flatten(0, 1),
            k=k.as_strided(*layout.k),
            v=v.as_strided(*layout.v),
            out=out.flatten(0, 1),
            cu_seqlens_q=layout.starts,
            max_seqlen_q=most,
            seqused_k=lengths,
            max_seqlen_k=seqlen_k,
            softmax_scale=scale,
            causal=True,
            window_size=window,
            block_table=layout.table,
            softcap=softcap,
            q_descale=None,
            k_descale=None,
            v_descale=None,
            alibi_slopes=None if alibi_slopes is None else alibi_slopes.contiguous(),
            sinks=sinks,
        )
        if dead:
            fill_dead_rows(out, None, dead, seqlen_q, None)
        if ragged:
            unseeing = torch.arange(seqlen_q, device=q.device) < seqlen_q - lengths.unsqueeze(1)
            out.masked_fill_(unseeing[:, :, None, None], 0)
        return out

    return run


def _page(request: AttentionRequest, seqlen_k: int, installed: Installation) -> tuple[int, bool]:
    """The keys in a page, and whether the kernel may choose its tiles freely. It then never reads past the last key."""
    if holds("unified-split-of-odd-heads", installed) and not _is_power(request.headdim):
        return next(page for page in _PAGES if page <= seqlen_k), False
    if not holds("unified-tile-is-page", installed) and seqlen_k >= _PAGES[0]:
        return _PAGES[0], True  # its tiles are 64 keys at most
    if request.seqlen_q == 1 and request.seqlens_k is None:
        for page in (64, 32, 16):
            if seqlen_k % page == 0:
                return page, True
    return next(page for page in _PAGES if page <= seqlen_k), False


def _is_power(size: int) -> bool:
    return size & (size - 1) == 0
