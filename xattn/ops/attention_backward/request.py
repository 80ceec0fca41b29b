"""The frozen description of one call of `attention_backward`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from xattn.ops.shared import gradients
from xattn.ops.shared.dense import DenseRequest
from xattn.plugin import features
from xattn.plugin.backend import Kernel
from xattn.plugin.capabilities import Capabilities
from xattn.plugin.features import Vocabulary
from xattn.plugin.request import Phase

AttentionBackwardFeature = Literal[
    "causal",
    "window",
    "top_left",
    "bottom_right",
    "offset",
    "gqa",
    "headdim_v",
    "softcap",
    "alibi_slopes",
    "bias",
    "mask",
    "seqlens_k",
    "deterministic",
    "batch_invariant",
    "empty",
]


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class AttentionBackwardRequest(DenseRequest):
    """What a call of `attention_backward` asks for, validated. `None` means off.

    inputs_require_grad: a gradient of the gradients is wanted.
    """

    op: ClassVar[str] = "attention_backward"
    vocabulary: ClassVar[Vocabulary] = Vocabulary(
        op="attention_backward",
        features=(
            features.CAUSAL,
            features.WINDOW,
            features.TOP_LEFT,
            features.BOTTOM_RIGHT,
            features.OFFSET,
            features.GQA,
            features.HEADDIM_V,
            features.SOFTCAP,
            features.ALIBI_SLOPES,
            features.BIAS,
            features.MASK,
            features.SEQLENS_K,
            features.DETERMINISTIC,
            features.BATCH_INVARIANT,
            features.EMPTY,
        ),
        grads=("inputs",),
        sizes=("headdim", "headdim_v"),
        phases=("train",),
    )

    dims: ClassVar[Mapping[str, str]] = {
        "dout": "batch seqlen_q nheads headdim_v",
        "q": "batch seqlen_q nheads headdim",
        "k": "batch seqlen_k nheads_k headdim",
        "v": "batch seqlen_k nheads_k headdim_v",
        "out": "batch seqlen_q nheads headdim_v",
        "lse": "batch nheads seqlen_q",
        "alibi_slopes": "batch nheads",
        "bias": "batch nheads seqlen_q seqlen_k",
        "mask": "batch nheads seqlen_q seqlen_k",
        "seqlens_k": "batch",
        "dq": "batch seqlen_q nheads headdim",
        "dk": "batch seqlen_k nheads_k headdim",
        "dv": "batch seqlen_k nheads_k headdim_v",
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


class AttentionBackwardKernel(Kernel[AttentionBackwardRequest]):
    """A kernel of `attention_backward`.

    `plan` returns a callable `run(dout, q, k, v, out, lse)`, where dout, out and lse may have any strides. Where the
    request has optional tensors they come as keywords, those alone: alibi_slopes, bias, mask, seqlens_k; with align
    "offset" the keyword `align` is `off`, an int. It returns the tuple (dq, dk, dv), new tensors in the dtypes and
    shapes of q, k, v.
    """

    op = "attention_backward"
    capabilities: ClassVar[tuple[Capabilities[AttentionBackwardFeature], ...]]
