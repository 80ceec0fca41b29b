"""The frozen description of one call of `apply_rotary`: what a backend sees before it runs."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from xattn.request import dtype_name


@dataclass(frozen=True)
class RotaryRequest:
    """What a call asks for, validated.

    device, arch: as in `xattn.Request`.
    dtype:    of q and k. cos_dtype: of cos and sin, dtype itself or float32.
    nheads_k: None where the call has no k.
    batched:  cos and sin are (batch, seqlen, rotary_dim / 2) and not (seqlen, rotary_dim / 2).
    requires_grad: a gradient is wanted for q or k.
    Sizes may be symbolic under torch.compile: compare them, never use them as keys.
    """

    device: str
    dtype: torch.dtype
    cos_dtype: torch.dtype
    batch: int
    seqlen: int
    nheads: int
    nheads_k: int | None
    headdim: int
    rotary_dim: int
    arch: str | None = None
    interleaved: bool = False
    batched: bool = False
    requires_grad: bool = False

    @property
    def empty(self) -> bool:
        return self.batch == 0 or self.seqlen == 0

    def __str__(self) -> str:
        parts = [f"q=({self.batch}, {self.seqlen}, {self.nheads}, {self.headdim})"]
        if self.nheads_k is not None:
            parts.append(f"k=({self.batch}, {self.seqlen}, {self.nheads_k}, {self.headdim})")
        rows = f"{self.batch}, {self.seqlen}" if self.batched else f"{self.seqlen}"
        parts.append(f"cos=({rows}, {self.rotary_dim // 2}) {dtype_name(self.cos_dtype)}")
        parts += [dtype_name(self.dtype), self.device if self.arch is None else f"{self.device} {self.arch}"]
        parts += [name for name in ("interleaved", "requires_grad") if getattr(self, name)]
        return "apply_rotary: " + ", ".join(parts)
