"""`paged_attention` by the `sdpa` backend on the CPU: what it declares, and its plan.

Sequences of one query are decoded together: of their keys as many are gathered at a time as stay in the caches, and
joined through the log-sum-exp. Sequences of several queries go by themselves through the engine of `attention`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from xattn import AttentionOutput, Capabilities, PagedBatch, PagedKernel, PagedRequest, Reason
from xattn.plugin import Plan
from xattn_sdpa.attention import engine as dense
from xattn_sdpa.attention.engine import Settings
from xattn_sdpa.paged_attention.steps import Chunk, Span, Step, step_of

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_FEATURES: frozenset[Any] = frozenset(PagedRequest.vocabulary.feature_names)
_LACKS = frozenset({"q_scale", "k_scale", "v_scale", "out_dtype"})


class SdpaPaged(PagedKernel):
    capabilities = (
        Capabilities(
            device="cpu",
            dtypes=frozenset({torch.float64, torch.float32, torch.float16, torch.bfloat16}),
            features=_FEATURES - _LACKS,
            checked="run on CPU, torch 2.13",
        ),
    )

    def limits(self, request: PagedRequest) -> list[Reason]:
        if torch.compiler.is_compiling():
            return [Reason("graph", "traced", "called by itself", "The kernel reads lengths and tables on the host.")]
        return []

    def plan(self, request: PagedRequest) -> Plan:
        return _Paged(request)

    def kernel_name(self, request: PagedRequest) -> str:
        if _together(request):
            return "torch's fused CPU kernel over gathered keys, part by part, merged through lse"
        return "torch's fused CPU kernel or blocks of matmuls, sequence by sequence"


def _together(request: PagedRequest) -> bool:
    """Whether the fused kernel alone serves sequences of one query."""
    beyond = (request.softcap, request.alibi_slopes, request.tree_mask)
    return all(each is None for each in beyond) and request.headdim == request.headdim_v and request.softmax_scale > 0


class _Paged:
    def __init__(self, request: PagedRequest) -> None:
        self.request = request
        self.left, self.right = request.band
        if request.tree_mask is not None:
            self.right = 0
        self.together = _together(request)

    def __call__(
        self,
        q: Tensor,
        k_cache: Tensor,
        v_cache: Tensor,
        batch: PagedBatch,
        *,
        sinks: Tensor | None = None,
        alibi_slopes: Tensor | None = None,
        tree_mask: Tensor | None = None,
        align: int | Tensor | None = None,
    ) -> Tensor | AttentionOutput:
        step = self._step(k_cache, v_cache, batch, align)
        whole = len(step.chunks) == 1 and step.chunks[0].rows is None and sinks is None
        if whole:  # one call, with nothing to join: its result is the answer
            out, lse = self._decode(step.chunks[0], q, k_cache, v_cache, _Room())
        else:
            wide = torch.float64 if q.dtype == torch.float64 else torch.float32
            out = q.new_zeros(q.shape[0], q.shape[1], v_cache.shape[3], dtype=wide)
            lse = q.new_full((q.shape[0], q.shape[1]), -torch.inf, dtype=wide)
            room = _Room()
            for chunk in step.chunks:
                _join(out, lse, chunk.rows, *self._decode(chunk, q, k_cache, v_cache, room))
            for span in step.spans:
                rows = slice(span.row, span.end)
                out[rows], lse[rows] = self._attend(span, q, k_cache, v_cache, alibi_slopes, tree_mask)
            if sinks is not None:
                _join_sinks(out[: step.used], lse[: step.used], sinks)
            out = out.to(q.dtype)
        return AttentionOutput(out, lse.t().float()) if self.request.return_lse else out

    def _step(self, k_cache: Tensor, v_cache: Tensor, batch: PagedBatch, align: int | Tensor | None) -> Step:
        if isinstance(align, Tensor):
            offsets: tuple[int | None, ...] = tuple(align.tolist())
        else:
            offset = 0 if self.request.align == "top_left" else align
            offsets = (offset,) * batch.batch
        block_size = k_cache.shape[1]
        key_bytes = (k_cache.shape[3] + v_cache.shape[3]) * k_cache.shape[2] * k_cache.element_size()
        key = ("sdpa", self.left, self.right, offsets, block_size, key_bytes, self.together)
        return batch.derived(
            key,
            lambda: step_of(batch, self.left, self.right, list(offsets), block_size, key_bytes, self.together),
        )

    def _decode(self, chunk: Chunk, q: Tensor, k_cache: Tensor, v_cache: Tensor, room: _Room) -> tuple[Tensor, Tensor]:
        """out (sequences, nheads, headdim) and lse (sequences, nheads) of one query each."""
        rows = q if chunk.rows is None else q.index_select(0, chunk.rows)
        # The query heads of a group go in as the rows of one head: K and V are read once a group.
        grouped = rows.unflatten(1, (k_cache.shape[2], -1))
        k = room.gathered("k", k_cache, chunk.slots).transpose(1, 2)
        v = room.gathered("v", v_cache, chunk.slots).transpose(1, 2)
        bias = None if chunk.bias is None else chunk.bias.to(q.dtype)
        out, lse = _forward(grouped, k, v, 0.0, False, attn_mask=bias, scale=self.request.softmax_scale)
        return out.reshape(rows.shape[0], rows.shape[1], -1), lse.reshape(rows.shape[0], -1)

    def _attend(
        self, span: Span, q: Tensor, k_cache: Tensor, v_cache: Tensor, slopes: Tensor | None, tree: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """out (queries, nheads, headdim_v) and lse (queries, nheads) of one sequence."""
        rows = q[None, span.row : span.end]
        k, v = (gathered(cache, span.slots.unsqueeze(0)) for cache in (k_cache, v_cache))
        mask = None if tree is None else _in_tree(tree[span.row : span.end], span)[None, None]
        own = slopes if slopes is None or slopes.dim() == 1 else slopes[span.b]
        right = None if tree is not None else self.right
        settings = Settings(self.left, right, span.offset, self.request.softmax_scale, self.request.softcap)
        out, lse = dense.forward((rows, k, v, None, own, None, mask), None, settings)
        return out[0], lse[0].t()


class _Room:
    """Memory that each chunk of a call takes again: fresh memory costs a page fault for every 4 KB."""

    def __init__(self) -> None:
        self._memory: dict[str, Tensor] = {}

    def gathered(self, name: str, cache: Tensor, slots: Tensor) -> Tensor:
        """As `gathered`, valid until the next one of the name."""
        if not cache.is_contiguous():
            return gathered(cache, slots)
        flat, count = _by_slot(cache), slots.numel()
        if name not in self._memory or len(self._memory[name]) < count:
            self._memory[name] = flat.new_empty(count, flat.shape[1])
        found = torch.index_select(flat, 0, slots.view(-1), out=self._memory[name][:count])
        return found.view(*slots.shape, *cache.shape[2:])


def gathered(cache: Tensor, slots: Tensor) -> Tensor:
    """(sequences, keys, nheads_k, headdim) of slots (sequences, keys)."""
    if cache.is_contiguous():
        return _by_slot(cache).index_select(0, slots.view(-1)).view(*slots.shape, *cache.shape[2:])
    return cache[slots // cache.shape[1], slots % cache.shape[1]]


def _by_slot(cache: Tensor) -> Tensor:
    """A contiguous cache as one row a slot: rows of all heads are copied faster than heads."""
    return cache.detach().view(cache.shape[0] * cache.shape[1], -1)


def _join(out: Tensor, lse: Tensor, rows: Tensor | None, part: Tensor, part_lse: Tensor) -> None:
    """Add keys to the rows that have them."""
    old, old_lse = (out, lse) if rows is None else (out.index_select(0, rows), lse.index_select(0, rows))
    joined = torch.logaddexp(old_lse, part_lse)
    new = old * torch.exp(old_lse - joined).unsqueeze(-1) + part * torch.exp(part_lse - joined).unsqueeze(-1)
    if rows is None:
        out.copy_(new)
        lse.copy_(joined)
    else:
        out.index_copy_(0, rows, new)
        lse.index_copy_(0, rows, joined)


def _join_sinks(out: Tensor, lse: Tensor, sinks: Tensor) -> None:
    """In place: a sink joins the denominator."""
    sink = sinks.to(lse.dtype)
    out.mul_(torch.sigmoid(lse - sink).unsqueeze(-1))
    lse.copy_(torch.logaddexp(lse, sink))


def _in_tree(tree: Tensor, span: Span) -> Tensor:
    """Which of the span's keys a tree shows: (queries, keys)."""
    queries = span.end - span.row
    place = torch.arange(span.slots.shape[0]) - span.offset  # of a key among the new tokens
    at = place.clamp(0, max(tree.shape[1] - 1, 0)).expand(queries, -1)
    return (tree.gather(1, at) & (place < queries)) | (place < 0)
