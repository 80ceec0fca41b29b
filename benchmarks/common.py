"""What the subjects share: a row of the table, and tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Row:
    """One line: what was measured against which bar. Met where value <= limit; a row without a value was not run."""

    subject: str
    what: str
    bar: str
    measured: str
    value: float | None
    limit: float
    method: str = ""
    data: Mapping[str, Any] = field(default_factory=dict)

    @property
    def met(self) -> bool | None:
        return None if self.value is None else self.value <= self.limit


def qkv(
    batch: int,
    seqlen_q: int,
    nheads: int,
    headdim: int,
    *,
    seqlen_k: int | None = None,
    nheads_k: int | None = None,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    grad: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Random q, k, v, BSNH-contiguous."""
    torch.manual_seed(0)
    shape_k = (batch, seqlen_k or seqlen_q, nheads_k or nheads, headdim)
    shapes = ((batch, seqlen_q, nheads, headdim), shape_k, shape_k)
    q, k, v = (torch.randn(shape, dtype=dtype, device=device, requires_grad=grad) for shape in shapes)
    return q, k, v


def sdpa(q: Tensor, k: Tensor, v: Tensor, **arguments: Any) -> Tensor:
    """Torch's own SDPA on BSNH tensors: what a user writes without xattn."""
    return F.scaled_dot_product_attention(
        q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), **arguments
    ).transpose(1, 2)


def growth(sizes: Sequence[int], costs: Sequence[float]) -> float:
    """The exponent p of cost ~ size^p, by least squares: 1 is linear, 2 quadratic."""
    x, y = [math.log(size) for size in sizes], [math.log(cost) for cost in costs]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    covariance = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return covariance / sum((a - mean_x) ** 2 for a in x)


def mib(count: float) -> str:
    return f"{count / 2**20:,.1f} MiB"
