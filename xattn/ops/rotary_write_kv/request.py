"""The frozen description of one call of `rotary_write_kv`."""

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

RotaryWriteFeature = Literal["interleaved", "partial", "latent", "headdim_v", "k_scale", "v_scale", "empty"]


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class RotaryWriteRequest(Request):
    """What a call of `rotary_write_kv` asks for, validated. `None` means off.

    dtype:       of q, k and v.  cos_dtype: of cos and sin, dtype itself or float32.
    cache_dtype: of the caches; another one than dtype where they are quantised, beside a scale.
    tokens:      rounded up to the next power of two: a plan serves any number.
    headdim:     of k; of q too, but beside a latent cache, where q has headdim_q.
    headdim_v:   None of a latent cache, which has no values of its own.
    requires_grad: a tensor of the call requires grad, which no kernel serves.
    """

    op: ClassVar[str] = "rotary_write_kv"
    vocabulary: ClassVar[Vocabulary] = Vocabulary(
        op="rotary_write_kv",
        features=(
            features.flag("interleaved"),
            Feature("partial", lambda r: None if known(r.rotary_dim == r.headdim) else r.rotary_dim),
            features.LATENT,
            features.HEADDIM_V_OF_A_CACHE,
            features.argument("k_scale"),
            features.argument("v_scale"),
            features.EMPTY,
        ),
        sizes=("headdim", "headdim_v", "rotary_dim"),
        phases=("inference",),
    )

    cos_dtype: torch.dtype
    cache_dtype: torch.dtype
    tokens: int
    num_blocks: int
    block_size: int
    nheads: int
    nheads_k: int
    headdim_q: int
    headdim: int
    headdim_v: int | None
    rotary_dim: int
    interleaved: bool = False
    k_scale: TensorSpec | None = None
    v_scale: TensorSpec | None = None
    requires_grad: bool = False

    def wanted_grads(self) -> list[str]:
        return ["qkv"] if self.requires_grad else []

    def sizes(self) -> dict[str, int]:
        headdim_v = self.headdim if self.headdim_v is None else self.headdim_v
        return {"headdim": self.headdim, "headdim_v": headdim_v, "rotary_dim": self.rotary_dim}

    @property
    def dtypes(self) -> tuple[torch.dtype, ...]:
        return self.dtype, self.cos_dtype, self.cache_dtype

    def extents(self) -> dict[str, int]:
        return {"tokens": self.tokens, "nheads": self.nheads, "nheads_k": self.nheads_k}

    def results(self, tensors: Sequence[Any]) -> Any:
        return TensorSpec((tensors[0].shape[0], self.nheads, self.headdim_q), self.dtype, contiguous=True)

    @property
    def phase(self) -> Phase:
        return "inference"

    @property
    def empty(self) -> bool:
        return any(holds(size == 0) for size in (self.tokens, self.num_blocks))

    def __str__(self) -> str:
        width = f"{self.headdim}" if self.headdim_v in (None, self.headdim) else f"{self.headdim} and {self.headdim_v}"
        kept = f"a latent of {width}" if self.headdim_v is None else f"{self.nheads_k} heads of {width}"
        parts = [
            f"up to {self.tokens} tokens of q=(..., {self.nheads}, {self.headdim_q}) and {kept}",
            f"{self.num_blocks} blocks of {self.block_size}",
            f"cos=(tokens, {self.rotary_dim // 2}) {dtype_name(self.cos_dtype)}",
            dtype_name(self.dtype),
            *([] if self.cache_dtype == self.dtype else [f"stored as {dtype_name(self.cache_dtype)}"]),
            self.place,
            *(f"{name}={getattr(self, name)}" for name in ("k_scale", "v_scale") if getattr(self, name) is not None),
            *(name for name in ("interleaved", "requires_grad") if getattr(self, name)),
        ]
        return f"{self.op}: " + ", ".join(parts)


class RotaryWriteKernel(Kernel[RotaryWriteRequest]):
    """A kernel of `rotary_write_kv`.

    `plan` returns a callable `run(q, k, v, cos, sin, k_cache, v_cache, slots)` that writes as of `WriteKernel`, and
    returns q, rotated, a new contiguous tensor. Of a latent cache v and v_cache are None, and the last rotary_dim of q
    and k are rotated, else the first. Where the request has them, k_scale and v_scale come as keywords.
    """

    op = "rotary_write_kv"
    capabilities: ClassVar[tuple[Capabilities[RotaryWriteFeature], ...]]
