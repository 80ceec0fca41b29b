"""The frozen description of one call of `merge_attention`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from xattn.ops.shared.output import output
from xattn.plugin import features
from xattn.plugin.backend import Kernel
from xattn.plugin.capabilities import Capabilities
from xattn.plugin.features import Vocabulary
from xattn.plugin.request import Phase, Request, dtype_name
from xattn.plugin.symbolic import holds

MergeFeature = Literal["packed", "empty"]


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class MergeRequest(Request):
    """What a call of `merge_attention` asks for, validated.

    dtype:  of the outs. parts: how many there are.
    packed: outs are (tokens, nheads, headdim) and not (batch, seqlen, nheads, headdim).
    batch, seqlen: 1 and the tokens rounded up to the next power of two, where packed: a plan serves any number.
    """

    op: ClassVar[str] = "merge_attention"
    vocabulary: ClassVar[Vocabulary] = Vocabulary(
        op="merge_attention",
        features=(features.flag("packed"), features.EMPTY),
        grads=("outs", "lses"),
        sizes=("parts", "headdim"),
        phases=("train", "inference"),
    )

    parts: int
    packed: bool
    batch: int
    seqlen: int
    nheads: int
    headdim: int
    outs_require_grad: bool = False
    lses_require_grad: bool = False

    def wanted_grads(self) -> list[str]:
        wanted = (("outs", self.outs_require_grad), ("lses", self.lses_require_grad))
        return [name for name, is_wanted in wanted if is_wanted]

    def sizes(self) -> dict[str, int]:
        return {"parts": self.parts, "headdim": self.headdim}

    def extents(self) -> dict[str, int]:
        return {"tokens": self.batch * self.seqlen, "nheads": self.nheads}

    def results(self, tensors: Sequence[Any]) -> Any:
        outs, _ = tensors
        *batch, rows, nheads, headdim = outs[0].shape
        return output(
            (*batch, rows, nheads, headdim), self.dtype, (*batch, nheads, rows), return_lse=True,
            out_grad=self.outs_require_grad, lse_grad=self.lses_require_grad,
        )  # fmt: skip

    @property
    def phase(self) -> Phase:
        return "train" if self.wanted_grads() else "inference"

    @property
    def empty(self) -> bool:
        return holds(self.batch == 0) or holds(self.seqlen == 0)

    def __str__(self) -> str:
        rows = f"up to {self.seqlen}" if self.packed else f"{self.batch}, {self.seqlen}"
        parts = [f"{self.parts} outs of ({rows}, {self.nheads}, {self.headdim})", dtype_name(self.dtype), self.place]
        parts += [f"grad_{name}" for name in self.wanted_grads()]
        return f"{self.op}: " + ", ".join(parts)


class MergeKernel(Kernel[MergeRequest]):
    """A kernel of `merge_attention`.

    `plan` returns a callable `run(outs, lses)`, of two lists, that returns `xattn.AttentionOutput(out, lse)`: new
    tensors, out contiguous, in the dtype of the outs, and lse float32.
    """

    op = "merge_attention"
    capabilities: ClassVar[tuple[Capabilities[MergeFeature], ...]]
