"""`unified_attention` over paged caches: what it serves, and its plan."""

from __future__ import annotations

import torch
from torch import Tensor

from xattn import Capabilities, PagedBatch, PagedRequest, Reason
from xattn.plugin import Plan, dtype_name
from xattn_rocm import graphs, vendor
from xattn_rocm.aiter_triton.attention.unified import MODULES
from xattn_rocm.aiter_triton.paged_attention import pages
from xattn_rocm.aiter_triton.paged_attention.decode import DecodePaged
from xattn_rocm.aiter_triton.paged_attention.kernel import CHECKED, TritonPaged, once
from xattn_rocm.aiter_triton.paged_attention.pages import TILE_MAX
from xattn_rocm.archs import ARCHS
from xattn_rocm.installation import Installation, usable
from xattn_rocm.rules import holds

# More keys than a sequence can have, so that sums with it stay within 32 bits.
_ALL = 2**30


class UnifiedPaged(TritonPaged):
    name = "unified_attention"
    function = "unified_attention.unified_attention"
    capabilities = (
        Capabilities(
            device="rocm",
            dtypes=frozenset({torch.float16, torch.bfloat16}),
            features=frozenset(
                {
                    "causal",
                    "window",
                    "bottom_right",
                    "gqa",
                    "softcap",
                    "sinks",
                    "alibi_slopes",
                    "stale_pages",
                    "k_scale",
                    "v_scale",
                    "out_dtype",
                    "deterministic",
                }
            ),
            sizes={"headdim": (1, 256, 1)},
            priority={"default": 70},
            checked=CHECKED,
        ),
    )

    def stops(self, request: PagedRequest, installed: Installation) -> list[Reason]:
        found = []
        if request.arch == "gfx1250":
            hint = "There aiter has a Gluon kernel, which cannot be run anywhere else."
            found.append(Reason("arch", request.arch, "another", hint))
        if request.alibi_slopes is not None and request.sinks is not None:
            # It adds slope * j, not slope * (j - i): the same softmax, but for the sink.
            found.append(Reason("sinks", request.sinks, "off beside alibi_slopes"))
        return [*found, *_scale_reasons(request)] if request.k_scale is not None else found

    def rank(self, request: PagedRequest) -> int:
        # Key by key it does not split the keys; `pa_decode` does, over pages as they are.
        alone = request.one_query and _by_keys(request)
        return DecodePaged.capabilities[0].rank(request) - 1 if alone else super().rank(request)

    def launch(self, request: PagedRequest, installed: Installation) -> Plan:
        return _plan(request, installed)

    def kernel_name(self, request: PagedRequest) -> str:
        # Elsewhere it is called so that it does not.
        splits = ", which may split the keys" if _splits(request, usable()) else ""
        return f"{super().kernel_name(request)}{splits}"


def _scale_reasons(request: PagedRequest) -> list[Reason]:
    """Of quantised pages."""
    found = []
    known = ARCHS[request.arch].fp8 if request.arch in ARCHS else None
    if request.cache_dtype != known:
        # unified-int8-without-scales
        want = "no quantised pages" if known is None else dtype_name(known)
        found.append(Reason("k_cache", dtype_name(request.cache_dtype), f"{want}, on {request.arch}"))
    for name in ("k_scale", "v_scale"):
        scale = getattr(request, name)
        if scale is not None and scale.shape != ():
            # unified-one-descale
            found.append(Reason(name, scale, "()", "aiter's kernel reads the first number for all."))
    if torch.compiler.is_compiling():
        found.append(Reason("torch.compile", True, "an eager call, of quantised pages"))
    return found


def _plan(request: PagedRequest, installed: Installation) -> Plan:
    left, block_size = request.band[0], request.block_size
    left = None if left is None else min(left, _ALL)
    by_keys, decodes = _by_keys(request), _splits(request, installed)
    # max_seqlen_q and the window are upper bounds, by which the kernel picks its way. Of 2 queries its tiles are of its
    # own size; under a window it does not split the keys, where a query that sees none of a part comes out wrong.
    window = (-1 if decodes else _ALL if left is None else left, 0)
    scale, softcap = request.softmax_scale, request.softcap or 0.0
    dtype = request.out_dtype or request.dtype
    kernel = vendor.module(MODULES[installed.layout]).unified_attention
    nheads = request.nheads
    kept: dict[torch.device, Tensor] = {}

    def run(
        q: Tensor,
        k_cache: Tensor,
        v_cache: Tensor,
        batch: PagedBatch,
        *,
        sinks: Tensor | None = None,
        alibi_slopes: Tensor | None = None,
        k_scale: Tensor | None = None,
        v_scale: Tensor | None = None,
    ) -> Tensor:
        k, v = k_cache, v_cache
        if by_keys:
            if pages.steps(k)[:2] != pages.steps(v)[:2]:
                # One table cannot lead through both.
                k, v = k.contiguous(), v.contiguous()
            page, row, _ = pages.steps(k)
            last = k.shape[0] * page + block_size * row
            key = ("aiter keys", block_size, left, page, row)
            tables = once(batch, key, lambda: pages.of_keys(batch, block_size, left, (page, row), last))
            k, v = (x.as_strided((1, 1, *x.shape[2:]), (pages.steps(x)[2], 1, *x.stride()[2:])) for x in (k, v))
        else:
            tables = once(batch, ("aiter pages", block_size, left), lambda: pages.of_pages(batch, block_size, left))
        # Rows of no sequence are not written.
        make = torch.empty if batch.cu_seqlens_q is None else torch.zeros
        out = make((q.shape[0], nheads, q.shape[2]), dtype=dtype, device=q.device)
        if sinks is not None:
            sinks = sinks.contiguous()
        elif not decodes:
            sinks = _low(kept, nheads, q.device)
        kernel(
            q=q,
            k=k,
            v=v,
            out=out,
            cu_seqlens_q=tables.starts,
            max_seqlen_q=1 if decodes else max(2, batch.max_seqlen_q),
            seqused_k=tables.lengths,
            max_seqlen_k=batch.max_seqlen_k,
            softmax_scale=scale,
            causal=True,
            window_size=window,
            block_table=tables.table,
            softcap=softcap,
            q_descale=None,
            k_descale=k_scale,
            v_descale=v_scale,
            alibi_slopes=None if alibi_slopes is None else alibi_slopes.contiguous(),
            sinks=sinks,
        )
        if decodes:
            out.masked_fill_((tables.lengths == 0)[:, None, None], 0)
        return out

    return run


def _by_keys(request: PagedRequest) -> bool:
    """A tile as large as a page is loaded whole and without a mask, and no page before a window is cut at a key."""
    return not request.unseen_finite and (request.block_size <= TILE_MAX or request.band[0] is not None)


def _splits(request: PagedRequest, installed: Installation) -> bool:
    """Whether the kernel takes its own way for single queries, on which it may split the keys."""
    alone = request.one_query and request.band[0] is None and not _by_keys(request)
    return alone and _decodes(request, installed)


def _decodes(request: PagedRequest, installed: Installation) -> bool:
    """Whether the kernel's own way for single queries is right: its tiles are pages, of 64 keys at most."""
    if holds("unified-split-of-odd-heads", installed) and request.headdim & (request.headdim - 1):
        return False
    if request.block_size > TILE_MAX:
        return not holds("unified-tile-is-page", installed)
    return request.block_size in (16, 32, 64)


def _low(kept: dict[torch.device, Tensor], nheads: int, device: torch.device) -> Tensor:
    """Sinks that weigh nothing (unified-hidden-tile-is-0). With them a query that sees no key comes out as 0."""
    if device in kept and graphs.keeps():
        return kept[device]
    made = torch.full((nheads,), -1e30, device=device)
    if graphs.keeps():
        kept[device] = made
    return made
