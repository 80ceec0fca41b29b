"""What both namespaces' tensors have: codes in a memory, read as float32, rounded when they are written."""

from __future__ import annotations

from enum import Enum
from typing import Any

import numpy as np

from xattn_elsewhere.nki.emulation.dtypes import Array, DType


class LimitError(ValueError):
    """A kernel asks for what NKI's documentation says that the hardware does not do."""


class Region(Enum):
    """nl.sbuf, nl.psum, nl.hbm, nl.private_hbm, nl.shared_hbm"""

    sbuf = "sbuf"
    psum = "psum"
    hbm = "hbm"
    private_hbm = "private_hbm"
    shared_hbm = "shared_hbm"

    @property
    def on_chip(self) -> bool:
        return self in (Region.sbuf, Region.psum)


class Tensor:
    """data: the codes, a view of a memory.
    started: in PSUM, which elements a matmul wrote last, so that the next one adds to them; else None.
    """

    def __init__(self, data: Array, dtype: DType, region: Region, started: Array | None = None) -> None:
        self.data = data
        self.dtype = dtype
        self.buffer = region
        self.started = started

    @property
    def shape(self) -> tuple[int, ...]:
        return self.data.shape

    @property
    def ndim(self) -> int:
        return self.data.ndim

    @property
    def size(self) -> int:
        return self.data.size

    def values(self) -> Array:
        """float32"""
        return self.dtype.values(self.data)

    def write(self, values: Array) -> None:
        """Round float32 values to the tensor's type. As many a partition as it has, in any shape."""
        self.write_codes(self.dtype.codes_of(self._fitted(values)))

    def write_codes(self, codes: Array) -> None:
        self.data[...] = self._fitted(codes)
        if self.started is not None:
            self.started[...] = False

    def _fitted(self, values: Array) -> Array:
        if values.size != self.size or (self.buffer.on_chip and values.shape[:1] != self.shape[:1]):
            raise LimitError(f"a tile of shape {values.shape} written to one of shape {self.shape}")
        return values.reshape(self.shape)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.shape}, {self.dtype}, {self.buffer.value})"

    def __bool__(self) -> bool:
        raise LimitError("a kernel cannot branch on what a tensor holds")


def copied(dst: Tensor, src: Tensor) -> None:
    """Bit for bit between tensors of one type, else through float32."""
    if dst.dtype == src.dtype:
        dst.write_codes(src.data)
    else:
        dst.write(src.values())


def poisoned(data: Array, dtype: DType) -> None:
    """Nobody may rely on what is in memory that was never written."""
    data[...] = dtype.poison


def operand(value: Any, like: Tensor, what: str) -> Any:
    """A scalar, or a tile of one element a partition, to be broadcast over the free dimensions of `like`."""
    if not isinstance(value, Tensor):
        return np.float32(value)
    if value.shape[0] != like.shape[0] or value.size != value.shape[0]:
        raise LimitError(f"{what}: {value.shape} is not one element for each of {like.shape[0]} partitions")
    return value.values().reshape(-1, *(1 for _ in like.shape[1:]))
