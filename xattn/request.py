"""The frozen description of one call: the only thing a backend sees before it runs."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class TensorSpec:
    """Shape and dtype of an optional tensor argument, and whether a gradient is wanted for it."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    requires_grad: bool = False

    def __str__(self) -> str:
        return f"{tuple(self.shape)} {dtype_name(self.dtype)}" + (" requires_grad" if self.requires_grad else "")


@dataclass(frozen=True)
class Request:
    """What a call asks for, validated. `None` means off; a backend that ignores a field serves a wrong answer.

    device: torch's device type, but "rocm" where torch was built for HIP ("cuda" is NVIDIA alone).
    arch: "sm_90", "gfx942", ...; None where the device has no such name.
    align: "offset" where the caller gives `off` itself, which a plan gets with each call, as the keyword `align`.
    offset_inside: with align "offset": 0 <= off <= seqlen_k - seqlen_q, and no seqlens_k.
    requires_grad: a gradient is wanted for q, k or v; bias and sinks carry their own flag.
    Sizes may be symbolic under torch.compile: compare them, never use them as keys.
    """

    device: str
    dtype: torch.dtype
    batch: int
    seqlen_q: int
    seqlen_k: int
    nheads: int
    nheads_k: int
    headdim: int
    headdim_v: int
    arch: str | None = None
    causal: bool = False
    window: tuple[int | None, int | None] | None = None
    align: str = "bottom_right"
    offset_inside: bool = False
    scale: float | None = None
    softcap: float | None = None
    sinks: TensorSpec | None = None
    alibi_slopes: TensorSpec | None = None
    bias: TensorSpec | None = None
    mask: TensorSpec | None = None
    seqlens_k: TensorSpec | None = None
    dropout_p: float | None = None
    deterministic: bool = False
    return_lse: bool = False
    requires_grad: bool = False
    op: str = "attention"

    @property
    def group(self) -> int:
        """Query heads that share one key-value head."""
        return self.nheads // self.nheads_k

    @property
    def softmax_scale(self) -> float:
        """The factor on q @ k.T: `scale`, or 1/sqrt(headdim) where it is None."""
        return self.headdim**-0.5 if self.scale is None else self.scale

    @property
    def band(self) -> tuple[int | None, int | None]:
        """(left, right) of `causal` and `window` together: key j is visible to query i when
        i + off - left <= j <= i + off + right; None is open."""
        left, right = self.window if self.window is not None else (None, None)
        return left, (0 if self.causal else right)

    @property
    def has_band(self) -> bool:
        left, right = self.band
        return left is not None or right is not None

    @property
    def positional(self) -> bool:
        """Whether the answer depends on where the diagonal is."""
        return self.has_band or self.alibi_slopes is not None

    @property
    def offset(self) -> int | None:
        """`off` of the contract, the key that query 0 is aligned with, where seqlens_k is None; None where the call
        brings it."""
        if self.align == "offset":
            return None
        return 0 if self.align == "top_left" else self.seqlen_k - self.seqlen_q

    @property
    def any_grad(self) -> bool:
        """Whether a backward pass may follow."""
        specs = (self.bias, self.sinks)
        return self.requires_grad or any(spec is not None and spec.requires_grad for spec in specs)

    @property
    def empty(self) -> bool:
        return self.batch == 0 or self.seqlen_q == 0 or self.seqlen_k == 0

    @property
    def kind(self) -> str:
        """What a backend's priority may depend on: "train", "decode" (one query a sequence) or "prefill"."""
        if self.any_grad:
            return "train"
        return "decode" if self.seqlen_q == 1 else "prefill"

    @property
    def scores(self) -> int:
        """Number of elements of the full score matrix."""
        return self.batch * self.nheads * self.seqlen_q * self.seqlen_k

    def __str__(self) -> str:
        parts = [
            f"q=({self.batch}, {self.seqlen_q}, {self.nheads}, {self.headdim})",
            f"k=({self.batch}, {self.seqlen_k}, {self.nheads_k}, {self.headdim})",
            f"v=({self.batch}, {self.seqlen_k}, {self.nheads_k}, {self.headdim_v})",
            dtype_name(self.dtype),
            self.device if self.arch is None else f"{self.device} {self.arch}",
        ]
        for name in ("causal", "deterministic", "return_lse", "requires_grad"):
            if getattr(self, name):
                parts.append(name)
        for name in ("window", "scale", "softcap", "dropout_p"):
            if getattr(self, name) is not None:
                parts.append(f"{name}={getattr(self, name)}")
        if self.positional and self.align != "bottom_right":
            parts.append(f"align={self.align}")
        for name in ("sinks", "alibi_slopes", "bias", "mask", "seqlens_k"):
            spec: TensorSpec | None = getattr(self, name)
            if spec is not None:
                parts.append(f"{name}={spec}")
        return f"{self.op}: " + ", ".join(parts)


def dtype_name(dtype: torch.dtype) -> str:
    """torch.bfloat16 -> "bfloat16"."""
    return str(dtype).removeprefix("torch.")
