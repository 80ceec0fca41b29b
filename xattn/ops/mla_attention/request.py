"""The frozen description of one call of `mla_attention`."""

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
from xattn.plugin.features import Feature, Vocabulary
from xattn.plugin.request import Phase, TensorSpec, dtype_name
from xattn.plugin.symbolic import holds

MlaFeature = Literal[
    "causal",
    "topk_indices",
    "softcap",
    "sinks",
    "stale_pages",
    "q_scale",
    "kv_scale",
    "out_dtype",
    "deterministic",
    "batch_invariant",
    "return_lse",
    "empty",
]

_TOPK = Feature("topk_indices", lambda request: request.topk)


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class MlaRequest(SoftmaxRequest):
    """What a call of `mla_attention` asks for, validated. `None` means off.

    dtype:       of q.  cache_dtype: of the cache; another one where it is quantised, beside its scale.
    nheads_k, headdim, headdim_v: 1, kv_lora_rank + rope_dim, and kv_lora_rank: it is grouped attention with one head.
    batch, max_seqlen_q, max_seqlen_k: as of `paged_attention`, rounded up to the next power of two.
    one_query:   every sequence has one query: the batch has no cu_seqlens_q.
    topk:        how many slots each query has in topk_indices, in place of its sequence's pages; None without these.
    causal:      False beside topk_indices, which stand in its place.
    out_dtype:   None is that of q.
    """

    op: ClassVar[str] = "mla_attention"
    vocabulary: ClassVar[Vocabulary] = Vocabulary(
        op="mla_attention",
        features=(
            features.CAUSAL,
            _TOPK,
            features.SOFTCAP,
            features.SINKS,
            features.STALE_PAGES,
            features.argument("q_scale"),
            features.argument("kv_scale"),
            features.OUT_DTYPE,
            features.DETERMINISTIC,
            features.BATCH_INVARIANT,
            features.RETURN_LSE,
            features.EMPTY,
        ),
        sizes=("kv_lora_rank", "rope_dim", "block_size"),
        phases=("decode", "prefill"),
    )

    scale: float
    cache_dtype: torch.dtype
    batch: int
    max_seqlen_q: int
    max_seqlen_k: int
    one_query: bool
    num_blocks: int
    block_size: int
    topk: int | None = None
    q_scale: TensorSpec | None = None
    kv_scale: TensorSpec | None = None
    out_dtype: torch.dtype | None = None
    unseen_finite: bool = False

    @property
    def kv_lora_rank(self) -> int:
        """The dimensions of a key that are its value as well: the first ones."""
        return self.headdim_v

    @property
    def rope_dim(self) -> int:
        return self.headdim - self.headdim_v

    def sizes(self) -> dict[str, int]:
        return {"kv_lora_rank": self.kv_lora_rank, "rope_dim": self.rope_dim, "block_size": self.block_size}

    @property
    def dtypes(self) -> tuple[torch.dtype, ...]:
        return self.dtype, self.cache_dtype

    def extents(self) -> dict[str, int]:
        return self._extents(self.batch, self.max_seqlen_q, self.max_seqlen_k if self.topk is None else self.topk)

    def results(self, tensors: Sequence[Any]) -> Any:
        total_q = tensors[0].shape[0]
        shape, dtype = (total_q, self.nheads, self.kv_lora_rank), self.out_dtype or self.dtype
        return output(shape, dtype, (self.nheads, total_q), return_lse=self.return_lse)

    @property
    def empty(self) -> bool:
        sizes = (self.batch, self.max_seqlen_q, self.num_blocks, self.max_seqlen_k if self.topk is None else self.topk)
        return any(holds(size == 0) for size in sizes)

    @property
    def phase(self) -> Phase:
        return "decode" if holds(self.max_seqlen_q == 1) else "prefill"

    @property
    def scores(self) -> int:
        """As many as there are at most."""
        keys = self.max_seqlen_k if self.topk is None else self.topk
        return self.nheads * self.batch * self.max_seqlen_q * keys

    def __str__(self) -> str:
        stored = "" if self.cache_dtype == self.dtype else f" of {dtype_name(self.cache_dtype)}"
        queries = "1 query" if self.one_query else f"up to {self.max_seqlen_q} queries"
        keys = f"up to {self.max_seqlen_k} keys" if self.topk is None else f"{self.topk} slots a query"
        parts = [
            f"q=(total_q, {self.nheads}, {self.headdim})",
            f"{self.num_blocks} blocks{stored} of {self.block_size}",
            f"kv_lora_rank={self.kv_lora_rank}",
            f"up to {self.batch} sequences of {queries} and {keys}",
            dtype_name(self.dtype),
            self.place,
            *self._options(),
            *(f"{name}={getattr(self, name)}" for name in ("q_scale", "kv_scale") if getattr(self, name) is not None),
            *([] if self.out_dtype is None else [f"out_dtype={dtype_name(self.out_dtype)}"]),
            *(["unseen_finite"] if self.unseen_finite else []),
        ]
        return f"{self.op}: " + ", ".join(parts)


class MlaKernel(Kernel[MlaRequest]):
    """A kernel of `mla_attention`.

    `plan` returns a callable `run(q, kv_cache, batch)`, the batch an `xattn.PagedBatch` as of `PagedKernel`. Where the
    request has them, sinks, topk_indices and the scales come as keywords; beside topk_indices the batch says which rows
    of q are padding, and no more: its table and lengths may be anything. It returns out (total_q, nheads,
    kv_lora_rank), contiguous, or `xattn.AttentionOutput(out, lse)` with lse (nheads, total_q) where the request has
    return_lse.
    """

    op = "mla_attention"
    capabilities: ClassVar[tuple[Capabilities[MlaFeature], ...]]
