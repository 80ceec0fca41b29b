"""The frozen description of one call of `paged_attention`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch

from xattn.ops.shared.output import output
from xattn.ops.shared.softmax import SoftmaxRequest
from xattn.plugin import features
from xattn.plugin.backend import Kernel
from xattn.plugin.capabilities import Capabilities
from xattn.plugin.features import Vocabulary
from xattn.plugin.formats import Format
from xattn.plugin.request import Phase, TensorSpec, dtype_name
from xattn.plugin.symbolic import holds

PagedFeature = Literal[
    "causal",
    "window",
    "top_left",
    "bottom_right",
    "offset",
    "offsets",
    "gqa",
    "headdim_v",
    "softcap",
    "sinks",
    "alibi_slopes",
    "tree_mask",
    "stale_pages",
    "q_scale",
    "k_scale",
    "v_scale",
    "out_dtype",
    "format",
    "deterministic",
    "batch_invariant",
    "return_lse",
    "empty",
]


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class PagedRequest(SoftmaxRequest):
    """What a call of `paged_attention` asks for, validated. `None` means off.

    dtype:       of q.  cache_dtype: of the caches; another one where they are quantised, beside their scales.
    batch, max_seqlen_q, max_seqlen_k: rounded up to the next power of two; a plan gets the bounds with each batch. No
        size that changes from step to step is a part of the request: a plan serves every number of tokens.
    one_query:   every sequence has one query: the batch has no cu_seqlens_q.
    causal:      False beside a tree_mask, which stands in its place.
    out_dtype:   None is that of q.
    format:      of caches that are declared to have one: a plan gets both as `plugin.formats.FormattedCache`.
    """

    op: ClassVar[str] = "paged_attention"
    vocabulary: ClassVar[Vocabulary] = Vocabulary(
        op="paged_attention",
        features=(
            features.CAUSAL,
            features.WINDOW,
            features.TOP_LEFT,
            features.BOTTOM_RIGHT,
            features.OFFSET,
            features.OFFSETS,
            features.GQA,
            features.HEADDIM_V,
            features.SOFTCAP,
            features.SINKS,
            features.ALIBI_SLOPES,
            features.argument("tree_mask"),
            features.STALE_PAGES,
            features.argument("q_scale"),
            features.argument("k_scale"),
            features.argument("v_scale"),
            features.OUT_DTYPE,
            features.FORMAT,
            features.DETERMINISTIC,
            features.BATCH_INVARIANT,
            features.RETURN_LSE,
            features.EMPTY,
        ),
        sizes=("headdim", "headdim_v", "block_size"),
        phases=("decode", "prefill"),
    )

    cache_dtype: torch.dtype
    batch: int
    max_seqlen_q: int
    max_seqlen_k: int
    one_query: bool
    num_blocks: int
    block_size: int
    tree_mask: TensorSpec | None = None
    q_scale: TensorSpec | None = None
    k_scale: TensorSpec | None = None
    v_scale: TensorSpec | None = None
    out_dtype: torch.dtype | None = None
    unseen_finite: bool = False
    format: Format | None = None

    @property
    def positional(self) -> bool:
        """Whether the answer depends on where the diagonal is. A tree begins there."""
        # Not by super(), whose properties torch.compile takes for data before torch 2.13.
        return self.has_band or self.alibi_slopes is not None or self.tree_mask is not None

    @property
    def alignment_matters(self) -> bool:
        """Whether another `align` is another answer."""
        return self.positional

    def sizes(self) -> dict[str, int]:
        return {**super().sizes(), "block_size": self.block_size}

    @property
    def dtypes(self) -> tuple[torch.dtype, ...]:
        return self.dtype, self.cache_dtype

    def extents(self) -> dict[str, int]:
        return self._extents(self.batch, self.max_seqlen_q, self.max_seqlen_k)

    def results(self, tensors: Sequence[Any]) -> Any:
        total_q = tensors[0].shape[0]
        shape, dtype = (total_q, self.nheads, self.headdim_v), self.out_dtype or self.dtype
        return output(shape, dtype, (self.nheads, total_q), return_lse=self.return_lse)

    @property
    def empty(self) -> bool:
        return any(holds(size == 0) for size in (self.batch, self.max_seqlen_q, self.max_seqlen_k, self.num_blocks))

    @property
    def phase(self) -> Phase:
        return "decode" if holds(self.max_seqlen_q == 1) else "prefill"

    @property
    def scores(self) -> int:
        """As many as there are at most."""
        return self.nheads * self.batch * self.max_seqlen_q * self.max_seqlen_k

    def __str__(self) -> str:
        stored = "" if self.cache_dtype == self.dtype else f" of {dtype_name(self.cache_dtype)}"
        queries = "1 query" if self.one_query else f"up to {self.max_seqlen_q} queries"
        named = ("tree_mask", "q_scale", "k_scale", "v_scale")
        parts = [
            f"q=(total_q, {self.nheads}, {self.headdim})",
            f"{self.num_blocks} blocks{stored} of {self.block_size}",
            f"k=(..., {self.nheads_k}, {self.headdim})",
            f"v=(..., {self.nheads_k}, {self.headdim_v})",
            f"up to {self.batch} sequences of {queries} and up to {self.max_seqlen_k} keys",
            dtype_name(self.dtype),
            self.place,
            *self._options(),
            *(f"{name}={getattr(self, name)}" for name in named if getattr(self, name) is not None),
            *([] if self.out_dtype is None else [f"out_dtype={dtype_name(self.out_dtype)}"]),
            *(["unseen_finite"] if self.unseen_finite else []),
            *([] if self.format is None else [f"format={self.format}"]),
        ]
        return f"{self.op}: " + ", ".join(parts)


class PagedKernel(Kernel[PagedRequest]):
    """A kernel of `paged_attention`.

    `plan` returns a callable `run(q, k_cache, v_cache, batch)`, the batch an `xattn.PagedBatch` whose bounds are ints
    and whose values the host may not know. Where the request has them, sinks, alibi_slopes, tree_mask and the scales
    come as keywords, and `align` with align "offset" as an int, with "offsets" as a (batch,) int32 tensor. What it
    works out from the batch it keeps there, by `batch.derived`, for the other layers of the step. It returns out
    (total_q, nheads, headdim_v), contiguous, or `xattn.AttentionOutput(out, lse)` with lse (nheads, total_q) where the
    request has return_lse.

    A kernel that works it out on the host, from `batch.lists()`, sets `prepares_on_host` and gives its plan a method
    `prepare(batch)`, which a CUDA graph does not replay. That writes into tensors of `batch.kept`, which stay where
    they are from step to step.
    """

    op = "paged_attention"
    capabilities: ClassVar[tuple[Capabilities[PagedFeature], ...]]
