"""Legal calls of `rotary_write_kv`, no two of one kind; every word that a capability block may have is used by one."""

from __future__ import annotations

from typing import Any

import torch
from sample import Sample
from torch import Tensor


def tokens(
    slots: list[int],
    nheads: int = 4,
    nheads_k: int = 2,
    headdim: int = 8,
    headdim_v: int = 8,
    rotary_dim: int = 8,
    blocks: int = 6,
    block_size: int = 4,
    dtype: torch.dtype = torch.float32,
    table: torch.dtype = torch.float32,
) -> tuple[Tensor, ...]:
    """q, k, v, cos, sin, caches of zeros, and slots, the same at every call."""
    generator = torch.Generator().manual_seed(0)
    sizes = ((nheads, headdim), (nheads_k, headdim), (nheads_k, headdim_v))
    q, k, v = (torch.randn(len(slots), *size, generator=generator).to(dtype) for size in sizes)
    angles = torch.randn(len(slots), rotary_dim // 2, generator=generator)
    caches = [torch.zeros(blocks, block_size, nheads_k, size, dtype=dtype) for size in (headdim, headdim_v)]
    at = torch.tensor(slots, dtype=torch.int64)
    return q, k, v, angles.cos().to(table), angles.sin().to(table), caches[0], caches[1], at


def latents(slots: list[int], headdim_q: int = 8, **more: Any) -> tuple[Tensor | None, ...]:
    """The same of a latent cache: 8 wide, of which 4 are rotated."""
    q, k, _, cos, sin, cache, _, at = tokens(slots, nheads_k=1, rotary_dim=4, **more)
    return q[..., :headdim_q].contiguous(), k, None, cos, sin, cache, None, at


def samples(length: int = 5) -> dict[str, Sample]:
    """length: how many tokens."""
    slots = [(5 * i + 3) % 24 for i in range(length)]

    def made(named: dict[str, Any] | None = None, slots: list[int] = slots, **sizes: Any) -> Sample:
        return Sample(tokens(slots, **sizes), named or {}, written=(5, 6), caches=(5, 6))

    def latent(named: dict[str, Any] | None = None, **sizes: Any) -> Sample:
        return Sample(latents(slots, **sizes), named or {}, written=(5,), caches=(5,))

    *front, _, _, where = tokens(slots)
    stored = [torch.zeros(6, 4, 2, 8, dtype=torch.int8) for _ in range(2)]
    scales = {"k_scale": torch.tensor(0.1), "v_scale": torch.tensor(0.1)}
    return {
        "plain": made(),
        "float64": made(dtype=torch.float64),
        "table of the same dtype": made(dtype=torch.float16, table=torch.float16),
        "interleaved": made({"interleaved": True}),
        "partial": made(rotary_dim=6),
        "some skipped": made(slots=[-1, *slots[1:-1], -1], block_size=8),
        "latents": latent(),
        "latents, interleaved, a narrower q": latent({"interleaved": True}, headdim_q=6),
        "narrow values": made(headdim_v=5),
        "empty": made(slots=[]),
        "int8": Sample((*front, *stored, where), scales, written=(5, 6), caches=(5, 6)),
        "checked": made({"check": True}),
    }
