"""Quantised numbers by other means than the code's: every number that a dtype has, and the nearest of them."""

from __future__ import annotations

import bisect
import math
from functools import cache
from typing import Any

import torch
from torch import Tensor

STORAGES: dict[str, tuple[Any, float]] = {
    "int8": (torch.int8, 127.0),
    "int4": (torch.uint8, 7.0),
    "e4m3fn": (torch.float8_e4m3fn, 448.0),
    "e4m3fnuz": (torch.float8_e4m3fnuz, 240.0),
}
# What has a scale of its own, of 6 blocks of 4 places and 2 heads.
GRANULARITIES: dict[str, tuple[int, ...]] = {
    "tensor": (), "head": (2,), "block and head": (6, 2), "token": (6, 4, 1), "token and head": (6, 4, 2),
}  # fmt: skip


def meaning(name: str, byte: int) -> float:
    """The number behind a byte, by the formats' definitions; of int4, behind a nibble."""
    if name == "int8":
        return byte - 256 if byte > 127 else byte
    if name == "int4":
        return byte - 16 if byte > 7 else byte
    sign, exponent, mantissa = -1.0 if byte & 128 else 1.0, byte >> 3 & 15, byte & 7
    bias = 7 if name == "e4m3fn" else 8
    if (name == "e4m3fn" and byte & 127 == 127) or (name == "e4m3fnuz" and byte == 128):
        return math.nan
    if exponent == 0:
        return sign * mantissa * 2.0 ** (-2 - bias)
    return sign * (8 + mantissa) * 2.0 ** (exponent - bias - 3)


@cache
def every(name: str) -> list[tuple[float, int]]:
    """(number, byte), from the least on; zero once."""
    found = {meaning(name, byte): byte for byte in reversed(range(16 if name == "int4" else 256))}
    return sorted((number, byte) for number, byte in found.items() if not math.isnan(number))


def nearest(name: str, x: float) -> float:
    """Cut off at the largest number, and to the even of two that are as near."""
    qmax = STORAGES[name][1]
    x = max(-qmax, min(qmax, x))
    numbers = every(name)
    at = bisect.bisect_left(numbers, (x, -1))
    near = numbers[max(at - 1, 0) : at + 1]
    return min(near, key=lambda each: (abs(each[0] - x), each[1] & 1))[0]


def numbers_of(name: str, stored: Tensor) -> Tensor:
    """stored: (..., columns), of the storage's dtype: (..., headdim) float64."""
    raw = stored.view(torch.uint8)
    if name == "int4":
        raw = torch.stack((raw & 15, raw >> 4), -1).flatten(-2)
    return torch.tensor([meaning(name, byte) for byte in raw.flatten().tolist()], dtype=torch.float64).view(raw.shape)


def scale_of(scale: Tensor, block: int, place: int) -> Tensor:
    """(nheads_k or 1, 1): the scales of one key."""
    if scale.dim() == 2:
        return scale[block].unsqueeze(-1)
    return (scale[block, place] if scale.dim() == 3 else scale).view(-1, 1)


def room(name: str, headdim: int) -> Tensor:
    """A cache of 6 blocks of 4 places of 2 heads, whose every byte is 1."""
    columns = headdim // 2 if name == "int4" else headdim
    return torch.ones(6, 4, 2, columns, dtype=torch.uint8).view(STORAGES[name][0])
