"""Tensors, bit by bit."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

# Integers of an element's size: comparing them makes a NaN equal to itself, and 0 different from -0.
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def differing(one: Tensor, other: Tensor) -> int:
    """How many elements of two tensors differ in any bit. Of different shapes or dtypes, all do (at least one)."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return max(one.numel(), other.numel(), 1)
    return int((_as_integers(one) != _as_integers(other)).sum())


def first(one: Tensor, other: Tensor) -> str:
    """The first element in which two tensors differ, in words: "[0, 3, 1, 7]: 0.5 became 0.25"."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return f"{tuple(one.shape)} {one.dtype} became {tuple(other.shape)} {other.dtype}"
    index = (_as_integers(one) != _as_integers(other)).nonzero()[0].tolist()
    return f"{index}: {one[tuple(index)].item():.9g} became {other[tuple(index)].item():.9g}"


def copies(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}


def digest(tensors: Mapping[str, Tensor]) -> str:
    """sha256 over names, shapes, dtypes and bits."""
    total = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        total.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        total.update(_as_integers(tensor).contiguous().numpy().tobytes())
    return total.hexdigest()


def _as_integers(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().view(_INTEGERS[tensor.element_size()])
