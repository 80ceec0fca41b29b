"""The frozen description of one call of `apply_rotary`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch

from xattn.plugin import features
from xattn.plugin.backend import Kernel
from xattn.plugin.capabilities import Capabilities
from xattn.plugin.features import Feature, Vocabulary
from xattn.plugin.request import Phase, Request, TensorSpec, dtype_name
from xattn.plugin.symbolic import holds, known

RotaryFeature = Literal["interleaved", "partial", "batched", "empty"]


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class RotaryRequest(Request):
    """What a call of `apply_rotary` asks for, validated.

    dtype:     of q and k. cos_dtype: of cos and sin, dtype itself or float32.
    nheads_k:  None where the call has no k.
    batched:   cos and sin are (batch, seqlen, rotary_dim / 2) and not (seqlen, rotary_dim / 2).
    requires_grad: a gradient is wanted for q or k.
    """

    op: ClassVar[str] = "apply_rotary"
    vocabulary: ClassVar[Vocabulary] = Vocabulary(
        op="apply_rotary",
        features=(
            features.flag("interleaved"),
            Feature("partial", lambda r: None if known(r.rotary_dim == r.headdim) else r.rotary_dim),
            features.flag("batched", "Where all batch rows have the same positions, pass cos[0] and sin[0]."),
            features.EMPTY,
        ),
        grads=("qk",),
        sizes=("headdim", "rotary_dim"),
        phases=("train", "inference"),
    )

    cos_dtype: torch.dtype
    batch: int
    seqlen: int
    nheads: int
    nheads_k: int | None
    headdim: int
    rotary_dim: int
    interleaved: bool = False
    batched: bool = False
    requires_grad: bool = False

    def wanted_grads(self) -> list[str]:
        return ["qk"] if self.requires_grad else []

    def sizes(self) -> dict[str, int]:
        return {"headdim": self.headdim, "rotary_dim": self.rotary_dim}

    @property
    def dtypes(self) -> tuple[torch.dtype, ...]:
        return self.dtype, self.cos_dtype

    def extents(self) -> dict[str, int]:
        return {"tokens": self.batch * self.seqlen, "nheads": self.nheads, "nheads_k": self.nheads_k or 0}

    def results(self, tensors: Sequence[Any]) -> Any:
        def rotated(x: Any, nheads: int) -> TensorSpec:
            shape = (self.batch, self.seqlen, nheads, self.headdim)
            return TensorSpec(shape, self.dtype, self.requires_grad and x.requires_grad, contiguous=True)

        q, k, *_ = tensors
        return rotated(q, self.nheads), None if self.nheads_k is None else rotated(k, self.nheads_k)

    @property
    def phase(self) -> Phase:
        return "train" if self.requires_grad else "inference"

    @property
    def empty(self) -> bool:
        return holds(self.batch == 0) or holds(self.seqlen == 0)

    def __str__(self) -> str:
        parts = [f"q=({self.batch}, {self.seqlen}, {self.nheads}, {self.headdim})"]
        if self.nheads_k is not None:
            parts.append(f"k=({self.batch}, {self.seqlen}, {self.nheads_k}, {self.headdim})")
        rows = f"{self.batch}, {self.seqlen}" if self.batched else f"{self.seqlen}"
        parts.append(f"cos=({rows}, {self.rotary_dim // 2}) {dtype_name(self.cos_dtype)}")
        parts += [dtype_name(self.dtype), self.place]
        parts += [name for name in ("interleaved", "requires_grad") if getattr(self, name)]
        return f"{self.op}: " + ", ".join(parts)


class RotaryKernel(Kernel[RotaryRequest]):
    """A kernel of `apply_rotary`.

    `plan` returns a callable `run(q, k, cos, sin)`, with None for k where the request has none. It returns new tensors
    (q, k), rotated, BSNH-contiguous, and None for k likewise.
    """

    op = "apply_rotary"
    capabilities: ClassVar[tuple[Capabilities[RotaryFeature], ...]]
