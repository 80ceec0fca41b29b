"""What of a call becomes a function of one score: softcap, biases and masks, in the contract's order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Mod = Callable[..., Tensor]


@dataclass(frozen=True)
class Tensors:
    """The tensors of a call, None where it has none. softcap: (1,). band: `blocks.edges`, counted from the first query
    and key, or with lengths from `offsets`. lengths: (batch,). offsets: (batch,), the key that query 0 of each row is
    aligned with."""

    softcap: Tensor | None = None
    band: Tensor | None = None
    bias: Tensor | None = None
    mask: Tensor | None = None
    slopes: Tensor | None = None
    lengths: Tensor | None = None
    offsets: Tensor | None = None


def mask_mod(band: Tensor) -> Mod:
    def visible(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return (j >= i + band[0]) & (j <= i + band[1])

    return visible


def score_mod(given: Tensors, hides_band: bool) -> Mod | None:
    """hides_band: the band is not left to a block mask."""
    parts: list[Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]] = []
    if given.softcap is not None:
        parts.append(_capped(given.softcap))
    if given.bias is not None:
        parts.append(_biased(given.bias))
    if given.slopes is not None:
        assert given.offsets is not None
        parts.append(_sloped(given.slopes, given.offsets))
    if hides_band:
        assert given.band is not None
        parts.append(_banded(given.band, given.offsets if given.lengths is not None else None))
    if given.lengths is not None:
        parts.append(_cut(given.lengths))
    if given.mask is not None:
        parts.append(_masked(given.mask))
    if not parts:
        return None

    def modified(s: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        for part in parts:
            s = part(s, b, h, i, j)
        return s

    return modified


def _capped(softcap: Tensor) -> Any:
    def part(s: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        # A number would be made symbolic, which torch cannot compile here.
        cap = softcap[0]
        return cap * torch.tanh(s / cap)

    return part


def _biased(bias: Tensor) -> Any:
    def part(s: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        added = bias[b, h, i, j]
        # Not the sum: the score of a key that is hidden may be NaN. The lowest numbers times log2(e), which the kernel
        # takes, would be -inf.
        return torch.where(added == -torch.inf, -torch.inf, s + added.clamp_min(-1e30))

    return part


def _sloped(slopes: Tensor, offsets: Tensor) -> Any:
    def part(s: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return s - slopes[b, h] * (i + offsets[b] - j).abs()

    return part


def _banded(band: Tensor, offsets: Tensor | None) -> Any:
    def part(s: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        row = i if offsets is None else i + offsets[b]
        return torch.where((j >= row + band[0]) & (j <= row + band[1]), s, -torch.inf)

    return part


def _cut(lengths: Tensor) -> Any:
    def part(s: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return torch.where(j < lengths[b], s, -torch.inf)

    return part


def _masked(mask: Tensor) -> Any:
    def part(s: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return torch.where(mask[b, h, i, j], s, -torch.inf)

    return part
