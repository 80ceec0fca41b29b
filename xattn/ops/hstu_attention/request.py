"""The frozen description of one call of `hstu_attention`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from xattn.ops.shared.output import output
from xattn.plugin import features
from xattn.plugin.backend import Kernel
from xattn.plugin.capabilities import Capabilities
from xattn.plugin.features import Vocabulary
from xattn.plugin.request import Phase, Request, TensorSpec, dtype_name
from xattn.plugin.symbolic import holds

HstuFeature = Literal[
    "causal",
    "num_targets",
    "max_attn_len",
    "contextual_seqlen",
    "headdim_v",
    "deterministic",
    "empty",
]


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class HstuRequest(Request):
    """What a call of `hstu_attention` asks for, validated. `None` means off.

    batch, max_seqlen: rounded up to the next power of two; a plan gets the bound with each call. No size that changes
        from step to step is a part of the request: a plan serves every number of tokens.
    contextual_seqlen: at least 1, or None.
    requires_grad: a gradient is wanted for q, k or v.
    """

    op: ClassVar[str] = "hstu_attention"
    vocabulary: ClassVar[Vocabulary] = Vocabulary(
        op="hstu_attention",
        features=(
            features.CAUSAL,
            features.argument("num_targets"),
            features.argument("max_attn_len"),
            features.argument("contextual_seqlen"),
            features.HEADDIM_V,
            features.DETERMINISTIC,
            features.EMPTY,
        ),
        grads=("qkv",),
        sizes=("headdim", "headdim_v"),
        phases=("train", "inference"),
    )

    batch: int
    max_seqlen: int
    nheads: int
    headdim: int
    headdim_v: int
    norm: float
    scale: float
    causal: bool = True
    num_targets: TensorSpec | None = None
    max_attn_len: int | None = None
    contextual_seqlen: int | None = None
    deterministic: bool = False
    requires_grad: bool = False

    def wanted_grads(self) -> list[str]:
        return ["qkv"] if self.requires_grad else []

    def sizes(self) -> dict[str, int]:
        return {"headdim": self.headdim, "headdim_v": self.headdim_v}

    def extents(self) -> dict[str, int]:
        return {"batch_nheads": self.batch * self.nheads, "max_seqlen": self.max_seqlen}

    def results(self, tensors: Sequence[Any]) -> Any:
        shape = (tensors[0].shape[0], self.nheads, self.headdim_v)
        return output(shape, self.dtype, (), return_lse=False, out_grad=self.requires_grad)

    @property
    def phase(self) -> Phase:
        return "train" if self.requires_grad else "inference"

    @property
    def empty(self) -> bool:
        return holds(self.batch == 0) or holds(self.max_seqlen == 0)

    @property
    def scores(self) -> int:
        """As many as there are at most."""
        return self.nheads * self.batch * self.max_seqlen * self.max_seqlen

    def __str__(self) -> str:
        options: Mapping[str, Any] = {
            "num_targets": self.num_targets,
            "max_attn_len": self.max_attn_len,
            "contextual_seqlen": self.contextual_seqlen,
        }
        flags = ("causal", "deterministic", "requires_grad")
        parts = [
            f"q=(total, {self.nheads}, {self.headdim})",
            f"v=(total, {self.nheads}, {self.headdim_v})",
            f"up to {self.batch} sequences of up to {self.max_seqlen} tokens",
            dtype_name(self.dtype),
            self.place,
            f"norm={self.norm:g}",
            f"scale={self.scale:g}",
            *(name for name in flags if getattr(self, name)),
            *(f"{name}={value}" for name, value in options.items() if value is not None),
        ]
        return f"{self.op}: " + ", ".join(parts)


class HstuKernel(Kernel[HstuRequest]):
    """A kernel of `hstu_attention`.

    `plan` returns a callable `run(q, k, v, cu_seqlens, max_seqlen=...)`, the bound as an int; where the request has
    num_targets, it comes as a keyword. It returns out (total, nheads, headdim_v), contiguous, in the dtype of q, with 0
    in the rows of no sequence.
    """

    op = "hstu_attention"
    capabilities: ClassVar[tuple[Capabilities[HstuFeature], ...]]
