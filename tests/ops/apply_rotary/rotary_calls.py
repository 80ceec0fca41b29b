"""Calls of `apply_rotary`, and what they must give."""

from __future__ import annotations

import torch
from torch import Tensor

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
# Half a unit in the last place of 1, as the largest relative error of one rounding.
UNIT = {torch.float64: 2.0**-53, torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}


def tensors(
    dtype: torch.dtype = torch.float32,
    batch: int = 2,
    seqlen: int = 5,
    nheads: int = 4,
    nheads_k: int = 2,
    headdim: int = 16,
    rotary_dim: int = 16,
    batched: bool = False,
    table: torch.dtype | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """q, k, cos, sin, the same at every call."""
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(batch, seqlen, nheads, headdim, generator=generator, dtype=torch.float64)
    k = torch.randn(batch, seqlen, nheads_k, headdim, generator=generator, dtype=torch.float64)
    rows = (batch, seqlen) if batched else (seqlen,)
    angle = 10 * torch.rand(*rows, rotary_dim // 2, generator=generator, dtype=torch.float64)
    kind = table or torch.float32
    return q.to(dtype), k.to(dtype), angle.cos().to(kind), angle.sin().to(kind)


def turned(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """x as complex numbers times cos + i sin, in float64: the oracle."""
    width = 2 * cos.shape[-1]
    front, rest = x.double()[..., :width], x.double()[..., width:]
    by = torch.complex(cos.double(), sin.double())[..., None, :]
    if interleaved:
        z = torch.view_as_complex(front.reshape(*front.shape[:-1], -1, 2)) * by
        return torch.cat((torch.view_as_real(z).flatten(-2), rest), -1)
    z = torch.complex(*(half.contiguous() for half in front.chunk(2, -1))) * by
    return torch.cat((z.real, z.imag, rest), -1)


def close(got: Tensor, want: Tensor, dtype: torch.dtype, size: float = 6.0) -> None:
    """One rounding to the dtype, and three in float32 of numbers that are no larger than `size`."""
    wide = UNIT[torch.float64 if dtype == torch.float64 else torch.float32]
    bound = UNIT[dtype] * want.abs() + 3 * wide * size + 2.0**-25 * (dtype == torch.float16)
    assert bool(((got.double() - want).abs() <= bound).all()), (got.double() - want).abs().max()
