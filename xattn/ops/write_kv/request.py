"""The frozen description of one call of `write_kv`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch

from xattn.plugin import features
from xattn.plugin.backend import Kernel
from xattn.plugin.capabilities import Capabilities
from xattn.plugin.features import Vocabulary
from xattn.plugin.formats import Format
from xattn.plugin.request import Phase, Request, TensorSpec, dtype_name
from xattn.plugin.symbolic import holds

WriteFeature = Literal["latent", "headdim_v", "k_scale", "v_scale", "format", "empty"]


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class WriteRequest(Request):
    """What a call of `write_kv` asks for, validated. `None` means off.

    dtype:       of k and v.
    cache_dtype: of the caches; another one than dtype where they are quantised, beside a scale.
    headdim_v:   None of a latent cache, which has no values of its own.
    tokens:      rounded up to the next power of two: a plan serves any number.
    format:      of caches that are declared to have one: a plan gets both as `plugin.formats.FormattedCache`.
    requires_grad: a tensor of the call requires grad, which no kernel serves.
    """

    op: ClassVar[str] = "write_kv"
    vocabulary: ClassVar[Vocabulary] = Vocabulary(
        op="write_kv",
        features=(
            features.LATENT,
            features.HEADDIM_V_OF_A_CACHE,
            features.argument("k_scale"),
            features.argument("v_scale"),
            features.FORMAT,
            features.EMPTY,
        ),
        sizes=("headdim", "headdim_v"),
        phases=("inference",),
    )

    cache_dtype: torch.dtype
    tokens: int
    num_blocks: int
    block_size: int
    nheads_k: int
    headdim: int
    headdim_v: int | None
    k_scale: TensorSpec | None = None
    v_scale: TensorSpec | None = None
    format: Format | None = None
    requires_grad: bool = False

    def wanted_grads(self) -> list[str]:
        return ["kv"] if self.requires_grad else []

    def sizes(self) -> dict[str, int]:
        # The value of a latent is a part of it: no wider.
        return {"headdim": self.headdim, "headdim_v": self.headdim if self.headdim_v is None else self.headdim_v}

    @property
    def dtypes(self) -> tuple[torch.dtype, ...]:
        return self.dtype, self.cache_dtype

    def extents(self) -> dict[str, int]:
        return {"tokens": self.tokens, "nheads_k": self.nheads_k}

    def results(self, tensors: Sequence[Any]) -> None:
        return None

    @property
    def phase(self) -> Phase:
        return "inference"

    @property
    def empty(self) -> bool:
        return any(holds(size == 0) for size in (self.tokens, self.num_blocks))

    def __str__(self) -> str:
        width = f"{self.headdim}" if self.headdim_v in (None, self.headdim) else f"{self.headdim} and {self.headdim_v}"
        kept = f"latents of {width}" if self.headdim_v is None else f"tokens of {self.nheads_k} heads of {width}"
        parts = [
            f"up to {self.tokens} {kept}",
            f"{self.num_blocks} blocks of {self.block_size}",
            dtype_name(self.dtype),
            *([] if self.cache_dtype == self.dtype else [f"stored as {dtype_name(self.cache_dtype)}"]),
            self.place,
            *(f"{name}={getattr(self, name)}" for name in ("k_scale", "v_scale") if getattr(self, name) is not None),
            *([] if self.format is None else [f"format={self.format}"]),
            *(["requires_grad"] if self.requires_grad else []),
        ]
        return f"{self.op}: " + ", ".join(parts)


class WriteKernel(Kernel[WriteRequest]):
    """A kernel of `write_kv`.

    `plan` returns a callable `run(k, v, k_cache, v_cache, slots)` that writes row t of k and v to the block slots[t] //
    block_size of the caches, at slots[t] % block_size there, passes over rows whose slot is -1, and returns None. Of a
    latent cache v and v_cache are None. Where the request has them, k_scale and v_scale come as keywords.
    """

    op = "write_kv"
    capabilities: ClassVar[tuple[Capabilities[WriteFeature], ...]]
