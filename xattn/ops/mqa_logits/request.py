"""The frozen description of one call of `mqa_logits`."""

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

MqaLogitsFeature = Literal["k_scale", "empty"]


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class MqaLogitsRequest(LogitsRequest):
    """What a call of `mqa_logits` asks for, validated. `None` means off.

    total_q, total_k: rounded up to the next power of two: a plan serves any number.
    """

    op: ClassVar[str] = "mqa_logits"
    vocabulary: ClassVar[Vocabulary] = Vocabulary(
        op="mqa_logits",
        features=(features.argument("k_scale"), features.EMPTY),
        sizes=("nheads", "headdim"),
        phases=("inference",),
    )

    total_q: int
    total_k: int

    def extents(self) -> dict[str, int]:
        return {"total_q": self.total_q, "total_k": self.total_k}

    def results(self, tensors: Sequence[Any]) -> Any:
        q, k, *_ = tensors
        return TensorSpec((q.shape[0], k.shape[0]), self.out_dtype, contiguous=True)

    @property
    def empty(self) -> bool:
        return holds(self.total_q == 0) or holds(self.total_k == 0)

    @property
    def scores(self) -> int:
        return self.nheads * self.total_q * self.total_k

    def __str__(self) -> str:
        sizes = f"q=(up to {self.total_q}, {self.nheads}, {self.headdim}), k=(up to {self.total_k}, {self.headdim})"
        return f"{self.op}: " + ", ".join([sizes, *self._options()])


class MqaLogitsKernel(Kernel[MqaLogitsRequest]):
    """A kernel of `mqa_logits`.

    `plan` returns a callable `run(q, k, weights, starts, ends)`, of which weights, starts and ends may have any
    strides; where the request has k_scale, it comes as a keyword. It returns the logits (total_q, total_k), a new
    contiguous float32 tensor, with -inf where a key is outside of its row's range.
    """

    op = "mqa_logits"
    capabilities: ClassVar[tuple[Capabilities[MqaLogitsFeature], ...]]
