"""Legal calls of `write_kv`, no two of one kind; every word that a capability block may have is used by one."""

from __future__ import annotations

from typing import Any

import torch
from sample import Sample
from torch import Tensor

from xattn.cache import FormattedCache


def tokens(
    slots: list[int],
    nheads_k: int = 2,
    headdim: int = 8,
    headdim_v: int = 8,
    blocks: int = 6,
    block_size: int = 4,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """k, v, caches of zeros, and slots, the same at every call."""
    generator = torch.Generator().manual_seed(0)
    k, v = (torch.randn(len(slots), nheads_k, size, generator=generator).to(dtype) for size in (headdim, headdim_v))
    caches = [torch.zeros(blocks, block_size, nheads_k, size, dtype=dtype) for size in (headdim, headdim_v)]
    return k, v, caches[0], caches[1], torch.tensor(slots, dtype=torch.int64)


def samples(length: int = 5) -> dict[str, Sample]:
    """length: how many tokens."""
    slots = [(5 * i + 3) % 24 for i in range(length)]

    def made(slots: list[int] = slots, **sizes: Any) -> Sample:
        return Sample(tokens(slots, **sizes), written=(2, 3), caches=(2, 3))

    k, v, _, _, where = tokens(slots)
    both = torch.zeros(6, 2, 4, 2, 8)
    stored = [torch.zeros(6, 4, 2, 8, dtype=torch.int8) for _ in range(2)]
    empty = [torch.zeros(6, 4, 2, size, dtype=torch.int8) for size in (16, 32)]
    formatted = FormattedCache.made(empty[0], "vllm", "k"), FormattedCache.made(empty[1], "vllm", "v")
    scales = {"k_scale": torch.tensor(0.1), "v_scale": torch.tensor(0.1)}
    return {
        "plain": made(),
        "float64": made(dtype=torch.float64),
        "one buffer": Sample((k, v, both[:, 0], both[:, 1], where), written=(2, 3), caches=(2, 3)),
        "some skipped": made([-1, *slots[1:-1], -1], block_size=8),
        "all skipped": made([-1] * 3),
        "latents": Sample((k[:, :1], None, torch.zeros(6, 4, 1, 8), None, where), written=(2,), caches=(2,)),
        "narrow values": made(headdim_v=5),
        "empty": made([]),
        "int8": Sample((k, v, *stored, where), scales, written=(2, 3), caches=(2, 3)),
        "int8, a scale a token": Sample(
            (k, v, *(each.clone() for each in stored), where),
            {name: torch.ones(6, 4, 1) for name in ("k_scale", "v_scale")},
            written=(2, 3),
            caches=(2, 3),
        ),
        "int8 in a format": Sample(
            (*tokens(slots, headdim=16, headdim_v=32)[:2], *formatted, where), scales, written=(2, 3)
        ),
        "checked": Sample(tokens(slots), {"check": True}, written=(2, 3), caches=(2, 3)),
    }
