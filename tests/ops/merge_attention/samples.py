"""Legal calls of `merge_attention`, no two of one kind; every word that a capability block may have is used by one."""

from __future__ import annotations

import torch
from sample import Sample
from torch import Tensor


def parts(
    count: int = 2, shape: tuple[int, ...] = (2, 5, 4, 8), dtype: torch.dtype = torch.float32
) -> tuple[list[Tensor], list[Tensor]]:
    """outs of a shape, (batch, seqlen, nheads, headdim) or packed, and their lses; the same at every call."""
    generator = torch.Generator().manual_seed(0)
    *batch, seqlen, nheads, _ = shape
    outs = [torch.randn(shape, generator=generator).to(dtype) for _ in range(count)]
    return outs, [torch.randn((*batch, nheads, seqlen), generator=generator) for _ in range(count)]


def hidden(outs: list[Tensor], lses: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """The same, where the first query saw no key of the first part, and the second query no key at all."""
    outs, lses = [out.clone() for out in outs], [lse.clone() for lse in lses]
    for i, (out, lse) in enumerate(zip(outs, lses, strict=True)):
        unseen = slice(0 if i == 0 else 1, 2)
        out[..., unseen, :, :] = torch.nan
        lse[..., unseen] = -torch.inf
    return outs, lses


def samples(length: int = 5) -> dict[str, Sample]:
    """length: of the queries."""

    def made(outs: list[Tensor], lses: list[Tensor]) -> Sample:
        return Sample((outs, lses), differentiable=(0, 1))

    dense = (2, length, 4, 8)
    return {
        "plain": made(*parts(shape=dense)),
        "float64": made(*parts(shape=dense, dtype=torch.float64)),
        "bfloat16": made(*parts(shape=dense, dtype=torch.bfloat16)),
        "one part": made(*parts(1, dense)),
        "five parts": made(*parts(5, dense)),
        "packed": made(*parts(shape=dense[1:])),
        "unseen": made(*hidden(*parts(3, dense))),
        "empty": made(*parts(shape=(0, *dense[1:]))),
    }
