"""NKI's data types, and rounding to them.

An on-chip tensor holds the codes of its type; engines compute with their float32 values. Source: "Supported Data
Types" in nki/api/nki.api.shared.rst of the AWS Neuron documentation (SDK 2.32).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass(frozen=True)
class DType:
    """codes: NumPy's type of what is stored, or None for a type that kernels may name, but not use here."""

    name: str
    codes: str | None = None

    def __str__(self) -> str:
        return self.name

    @property
    def floating(self) -> bool:
        return "float" in self.name

    @property
    def bytes(self) -> int:
        return self.storage.itemsize

    @property
    def storage(self) -> np.dtype[Any]:
        if self.codes is None:
            raise NotImplementedError(f"nki.language.{self.name} is not emulated")
        return np.dtype(self.codes)

    def values(self, codes: Array) -> Array:
        """What an engine computes with: float32."""
        if self.name == "bfloat16":
            wide: Array = (codes.astype(np.uint32) << np.uint32(16)).view(np.float32)
            return wide
        return codes.astype(np.float32)

    def codes_of(self, values: Array) -> Array:
        """float32 to codes: to nearest, ties to even. Raises ValueError for an integer type and no integer in its
        range: the documentation does not say what the hardware makes of that."""
        if self.name == "bfloat16":
            rounded = torch.from_numpy(np.ascontiguousarray(values, np.float32)).to(torch.bfloat16)
            codes: Array = rounded.view(torch.uint16).numpy().reshape(np.shape(values))
            return codes
        if self.floating:
            with np.errstate(over="ignore"):
                return values.astype(self.storage)
        # float32 has no 2^32 - 1.
        exact, limits = values.astype(np.float64), np.iinfo(self.storage)
        fits = (exact == np.rint(exact)) & (exact >= limits.min) & (exact <= limits.max)
        if not fits.all():
            raise ValueError(f"{self.name} of {exact[~fits].flat[0]}")
        return exact.astype(self.storage)

    @property
    def poison(self) -> Any:
        """The code of what was never written: NaN; in integers, which have none, a number that is no index."""
        return _poison(self)


@lru_cache
def _poison(dtype: DType) -> Any:
    if dtype.floating:
        return dtype.codes_of(np.array([np.nan], np.float32))[0]
    return np.iinfo(dtype.storage).max


float32 = DType("float32", "float32")
float16 = DType("float16", "float16")
bfloat16 = DType("bfloat16", "uint16")
int32 = DType("int32", "int32")
uint32 = DType("uint32", "uint32")
int16 = DType("int16", "int16")
uint16 = DType("uint16", "uint16")
int8 = DType("int8", "int8")
uint8 = DType("uint8", "uint8")

USABLE = {each.name: each for each in (float32, float16, bfloat16, int32, uint32, int16, uint16, int8, uint8)}

# Kernel files name these as they are imported.
NAMED = {
    name: DType(name)
    for name in (
        *("tfloat32", "float8_e4m3", "float8_e4m3fn", "float8_e5m2"),
        *("float8_e4m3fn_x4", "float8_e5m2_x4", "float4_e2m1fn_x4"),
    )
}

TORCH = {
    torch.float32: float32,
    torch.float16: float16,
    torch.bfloat16: bfloat16,
    torch.int32: int32,
    torch.int16: int16,
    torch.int8: int8,
    torch.uint8: uint8,
}


def dtype_of(given: Any) -> DType:
    """A DType, its name, or NumPy's type, which the legacy kernels pass as well."""
    if isinstance(given, DType):
        return given
    name = given if isinstance(given, str) else np.dtype(given).name
    if name not in USABLE:
        raise NotImplementedError(f"the data type {given!r} is not emulated")
    return USABLE[name]
