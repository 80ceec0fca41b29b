"""The frozen description of one call of `varlen_attention_backward`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from xattn.ops.shared import gradients
from xattn.ops.shared.packed import PackedRequest
from xattn.plugin import features
from xattn.plugin.backend import Kernel
from xattn.plugin.capabilities import Capabilities
from xattn.plugin.features import Vocabulary
from xattn.plugin.request import Phase

VarlenBackwardFeature = Literal[
    "causal",
    "window",
    "top_left",
    "bottom_right",
    "offset",
    "offsets",
    "gqa",
    "headdim_v",
    "softcap",
    "alibi_slopes",
    "deterministic",
    "batch_invariant",
    "empty",
]


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class VarlenBackwardRequest(PackedRequest):
    """What a call of `varlen_attention_backward` asks for, validated. `None` means off.

    inputs_require_grad: a gradient of the gradients is wanted.
    """

    op: ClassVar[str] = "varlen_attention_backward"
    vocabulary: ClassVar[Vocabulary] = Vocabulary(
        op="varlen_attention_backward",
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
            features.ALIBI_SLOPES,
            features.DETERMINISTIC,
            features.BATCH_INVARIANT,
            features.EMPTY,
        ),
        grads=("inputs",),
        sizes=("headdim", "headdim_v"),
        phases=("train",),
    )

    dims: ClassVar[Mapping[str, str]] = {
        "dout": "total_q nheads headdim_v",
        "q": "total_q nheads headdim",
        "k": "total_k nheads_k headdim",
        "v": "total_k nheads_k headdim_v",
        "out": "total_q nheads headdim_v",
        "lse": "nheads total_q",
        "cu_seqlens_q": "sequences",
        "cu_seqlens_k": "sequences",
        "alibi_slopes": "sequences nheads",
        "align": "sequences",
        "dq": "total_q nheads headdim",
        "dk": "total_k nheads_k headdim",
        "dv": "total_k nheads_k headdim_v",
    }
    summed: ClassVar[frozenset[str]] = frozenset({"dk", "dv"})

    inputs_require_grad: bool = False

    def wanted_grads(self) -> list[str]:
        return ["inputs"] if self.inputs_require_grad else []

    def results(self, tensors: Sequence[Any]) -> Any:
        return gradients.results(tensors)

    @property
    def phase(self) -> Phase:
        return "train"

    def __str__(self) -> str:
        return f"{self.op}: " + ", ".join([*self._shapes(), *self._options()])


class VarlenBackwardKernel(Kernel[VarlenBackwardRequest]):
    """A kernel of `varlen_attention_backward`.

    `plan` returns a callable `run(dout, q, k, v, out, lse, cu_seqlens_q, cu_seqlens_k, max_seqlen_q=...,
    max_seqlen_k=...)`, where dout, out and lse may have any strides. Where the request has them, alibi_slopes and align
    come as keywords, as of a `VarlenKernel`. It returns the tuple (dq, dk, dv), new tensors in the dtypes and shapes of
    q, k, v, with 0 in the rows of no sequence.
    """

    op = "varlen_attention_backward"
    capabilities: ClassVar[tuple[Capabilities[VarlenBackwardFeature], ...]]
