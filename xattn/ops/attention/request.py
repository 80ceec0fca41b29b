"""The frozen description of one call of `attention`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from xattn.ops.shared.dense import DenseRequest
from xattn.ops.shared.output import output
from xattn.ops.shared.softmax import PHASES, phase_of, wants_grad
from xattn.plugin import features
from xattn.plugin.backend import Kernel
from xattn.plugin.capabilities import Capabilities
from xattn.plugin.features import Vocabulary
from xattn.plugin.geometry import Geometry
from xattn.plugin.request import Phase, TensorSpec

AttentionFeature = Literal[
    "causal",
    "window",
    "top_left",
    "bottom_right",
    "offset",
    "gqa",
    "headdim_v",
    "softcap",
    "sinks",
    "alibi_slopes",
    "bias",
    "mask",
    "seqlens_k",
    "dropout_p",
    "deterministic",
    "batch_invariant",
    "return_lse",
    "empty",
]


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class AttentionRequest(DenseRequest):
    """What a call of `attention` asks for, validated. `None` means off."""

    op: ClassVar[str] = "attention"
    vocabulary: ClassVar[Vocabulary] = Vocabulary(
        op="attention",
        features=(
            features.CAUSAL,
            features.WINDOW,
            features.TOP_LEFT,
            features.BOTTOM_RIGHT,
            features.OFFSET,
            features.GQA,
            features.HEADDIM_V,
            features.SOFTCAP,
            features.SINKS,
            features.ALIBI_SLOPES,
            features.BIAS,
            features.MASK,
            features.SEQLENS_K,
            features.DROPOUT_P,
            features.DETERMINISTIC,
            features.BATCH_INVARIANT,
            features.RETURN_LSE,
            features.EMPTY,
        ),
        grads=("qkv", "bias", "sinks", "lse"),
        sizes=("headdim", "headdim_v"),
        phases=PHASES,
    )
    dims: ClassVar[Mapping[str, str]] = {
        "q": "batch seqlen_q nheads headdim",
        "k": "batch seqlen_k nheads_k headdim",
        "v": "batch seqlen_k nheads_k headdim_v",
        "sinks": "nheads",
        "alibi_slopes": "batch nheads",
        "bias": "batch nheads seqlen_q seqlen_k",
        "mask": "batch nheads seqlen_q seqlen_k",
        "seqlens_k": "batch",
        "out": "batch seqlen_q nheads headdim_v",
        "lse": "batch nheads seqlen_q",
    }

    dropout_p: float | None = None

    @property
    def any_grad(self) -> bool:
        # Of a property, torch.compile cannot trace super().
        return self.requires_grad or wants_grad(self.sinks) or wants_grad(self.bias)

    def wanted_grads(self) -> list[str]:
        wanted = super().wanted_grads()
        return [*wanted, "bias"] if wants_grad(self.bias) else wanted

    def results(self, tensors: Sequence[Any]) -> Any:
        return output(
            (self.batch, self.seqlen_q, self.nheads, self.headdim_v), self.dtype,
            (self.batch, self.nheads, self.seqlen_q), return_lse=self.return_lse,
            out_grad=self.any_grad, lse_grad=self.lse_grad(tensors) or wants_grad(self.bias),
        )  # fmt: skip

    @property
    def phase(self) -> Phase:
        return phase_of(self.any_grad, self.seqlen_q)

    def notes(self, given: Mapping[str, Any]) -> list[str]:
        found = []
        align = given.get("align", self.align)
        off = align if self.align == "offset" and align != "offset" else self.offset
        if off is not None and self.seqlens_k is None and not self.empty:
            geometry = Geometry(self.seqlen_q, self.seqlen_k, *self.band, off)
            for which, unseen in (("first", geometry.first_q), ("last", self.seqlen_q - geometry.end_q)):
                if unseen > 0:
                    rows = f"the {which} {unseen} of {self.seqlen_q} queries see no key, so their out is 0"
                    said = f'"{align}"' if isinstance(align, str) else align
                    why = f"align={said} aligns query 0 with key {off} of {self.seqlen_k}"
                    found.append(f"{rows}: {why}")
        if self.nheads > self.seqlen_q and self.nheads_k > self.seqlen_k and not self.empty:
            counts = f"{self.nheads} and {self.seqlen_q} of q, {self.nheads_k} and {self.seqlen_k} of k"
            meant = "if these are (batch, nheads, seqlen, headdim), pass x.transpose(1, 2)"
            found.append(f"more heads than tokens, {counts}: {meant}")
        for name in ("mask", "bias"):
            spec: TensorSpec | None = getattr(self, name)
            if spec is not None:
                found += self._notes_of_rank(name, len(spec.shape))
        return found

    def _notes_of_rank(self, name: str, rank: int) -> list[str]:
        """What a mask or bias of fewer dimensions may have been meant as, where the sizes fit both ways."""
        if rank == 2 and self.batch == self.seqlen_q > 1:
            return [
                f"{name} of 2 dimensions is (seqlen_q, seqlen_k), the same for each of the {self.batch} batch rows; "
                f"if it is (batch, seqlen_k), pass {name}[:, None, None, :]"
            ]
        if rank == 3 and self.batch == self.nheads > 1:
            return [
                f"{name} of 3 dimensions is (nheads, seqlen_q, seqlen_k), the same for each of the {self.batch} batch "
                f"rows; if it is (batch, seqlen_q, seqlen_k), pass {name}[:, None]"
            ]
        return []

    def __str__(self) -> str:
        return f"{self.op}: " + ", ".join([*self._shapes(), *self._options()])


class AttentionKernel(Kernel[AttentionRequest]):
    """A kernel of `attention`.

    `plan` returns a callable `run(q, k, v)`. Where the request has optional tensors they come as keywords, those alone:
    `run(q, k, v, sinks=..., alibi_slopes=..., bias=..., mask=..., seqlens_k=...)`; with align "offset" the keyword
    `align` is `off`, an int. It returns out, BSNH-contiguous, or `xattn.AttentionOutput(out, lse)` where the request
    has return_lse.
    """

    op = "attention"
    capabilities: ClassVar[tuple[Capabilities[AttentionFeature], ...]]
