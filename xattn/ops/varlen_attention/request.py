"""The frozen description of one call of `varlen_attention`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from xattn.ops.shared.output import output
from xattn.ops.shared.packed import PackedRequest
from xattn.ops.shared.softmax import PHASES, phase_of
from xattn.plugin import features
from xattn.plugin.backend import Kernel
from xattn.plugin.capabilities import Capabilities
from xattn.plugin.features import Vocabulary
from xattn.plugin.request import Phase

VarlenFeature = Literal[
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
    "deterministic",
    "batch_invariant",
    "return_lse",
    "empty",
]


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class VarlenRequest(PackedRequest):
    """What a call of `varlen_attention` asks for, validated. `None` means off."""

    op: ClassVar[str] = "varlen_attention"
    vocabulary: ClassVar[Vocabulary] = Vocabulary(
        op="varlen_attention",
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
            features.DETERMINISTIC,
            features.BATCH_INVARIANT,
            features.RETURN_LSE,
            features.EMPTY,
        ),
        grads=("qkv", "sinks", "lse"),
        sizes=("headdim", "headdim_v"),
        phases=PHASES,
    )
    dims: ClassVar[Mapping[str, str]] = {
        "q": "total_q nheads headdim",
        "k": "total_k nheads_k headdim",
        "v": "total_k nheads_k headdim_v",
        "cu_seqlens_q": "sequences",
        "cu_seqlens_k": "sequences",
        "sinks": "nheads",
        "alibi_slopes": "sequences nheads",
        "align": "sequences",
        "out": "total_q nheads headdim_v",
        "lse": "nheads total_q",
    }

    def results(self, tensors: Sequence[Any]) -> Any:
        total_q = tensors[0].shape[0]
        return output(
            (total_q, self.nheads, self.headdim_v), self.dtype, (self.nheads, total_q), return_lse=self.return_lse,
            out_grad=self.any_grad, lse_grad=self.lse_grad(tensors),
        )  # fmt: skip

    @property
    def phase(self) -> Phase:
        return phase_of(self.any_grad, self.max_seqlen_q)

    def __str__(self) -> str:
        return f"{self.op}: " + ", ".join([*self._shapes(), *self._options()])


class VarlenKernel(Kernel[VarlenRequest]):
    """A kernel of `varlen_attention`.

    `plan` returns a callable `run(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q=..., max_seqlen_k=...)`, the bounds
    as ints. Where the request has them, sinks and alibi_slopes come as keywords, and `align` with align "offset" as an
    int, with "offsets" as a (batch,) int32 tensor. It returns out (total_q, nheads, headdim_v), contiguous, or
    `xattn.AttentionOutput(out, lse)` with lse (nheads, total_q) where the request has return_lse.
    """

    op = "varlen_attention"
    capabilities: ClassVar[tuple[Capabilities[VarlenFeature], ...]]
