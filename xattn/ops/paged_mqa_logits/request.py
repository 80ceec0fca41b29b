"""The frozen description of one call of `paged_mqa_logits`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from xattn.ops.shared.logits import LogitsRequest
from xattn.plugin import features
from xattn.plugin.backend import Kernel
from xattn.plugin.capabilities import Capabilities
from xattn.plugin.features import Vocabulary
from xattn.plugin.request import TensorSpec
from xattn.plugin.symbolic import holds

PagedMqaLogitsFeature = Literal["k_scale", "empty"]


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class PagedMqaLogitsRequest(LogitsRequest):
    """What a call of `paged_mqa_logits` asks for, validated. `None` means off.

    batch, total_q, max_seqlen_k: rounded up to the next power of two: a plan serves any number.
    one_query: every sequence has one query: the batch has no cu_seqlens_q.
    """

    op: ClassVar[str] = "paged_mqa_logits"
    vocabulary: ClassVar[Vocabulary] = Vocabulary(
        op="paged_mqa_logits",
        features=(features.argument("k_scale"), features.EMPTY),
        sizes=("nheads", "headdim", "block_size"),
        phases=("inference",),
    )

    batch: int
    total_q: int
    max_seqlen_k: int
    one_query: bool
    num_blocks: int
    block_size: int

    def sizes(self) -> dict[str, int]:
        return {**super().sizes(), "block_size": self.block_size}

    def extents(self) -> dict[str, int]:
        return {"batch": self.batch, "total_q": self.total_q, "max_seqlen_k": self.max_seqlen_k}

    def results(self, tensors: Sequence[Any]) -> Any:
        q, _, _, batch = tensors
        return TensorSpec((q.shape[0], batch.max_seqlen_k), self.out_dtype, contiguous=True)

    @property
    def empty(self) -> bool:
        return any(holds(size == 0) for size in (self.batch, self.total_q, self.max_seqlen_k, self.num_blocks))

    @property
    def scores(self) -> int:
        return self.nheads * self.total_q * self.max_seqlen_k

    def __str__(self) -> str:
        queries = "1 query each" if self.one_query else f"up to {self.total_q} queries"
        parts = [
            f"q=(total_q, {self.nheads}, {self.headdim})",
            f"{self.num_blocks} blocks of {self.block_size}",
            f"up to {self.batch} sequences of {queries} and up to {self.max_seqlen_k} keys",
            *self._options(),
        ]
        return f"{self.op}: " + ", ".join(parts)


class PagedMqaLogitsKernel(Kernel[PagedMqaLogitsRequest]):
    """A kernel of `paged_mqa_logits`.

    `plan` returns a callable `run(q, k_cache, weights, batch)`, the batch an `xattn.PagedBatch` of which max_seqlen_k
    is the width of the result, and the other values may be unknown to the host; where the request has k_scale, it comes
    as a keyword. It returns the logits (total_q, batch.max_seqlen_k), a new contiguous float32 tensor, with -inf past
    the keys that a query sees, and in rows of no sequence.
    """

    op = "paged_mqa_logits"
    capabilities: ClassVar[tuple[Capabilities[PagedMqaLogitsFeature], ...]]
