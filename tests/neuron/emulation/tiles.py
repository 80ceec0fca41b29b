"""Tiles with values in them, and NumPy's view of what NKI documents."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from xattn_conformance.inputs.formats import round_to
from xattn_elsewhere.nki.emulation import language
from xattn_elsewhere.nki.emulation.access import NkiTensor
from xattn_elsewhere.nki.emulation.operators import OPERATORS
from xattn_elsewhere.nki.emulation.tensor import Region

SBUF, PSUM, HBM = Region.sbuf, Region.psum, Region.hbm

Array = NDArray[Any]


def random(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def empty(*shape: int, dtype: str = "float32", buffer: Region = SBUF) -> NkiTensor:
    return language.ndarray(shape, dtype, buffer)


def tile(values: Array, dtype: str = "float32", buffer: Region = SBUF) -> NkiTensor:
    made = empty(*values.shape, dtype=dtype, buffer=buffer)
    made.write(values)
    return made


def rounded(values: Array, dtype: str) -> Array:
    """By the suite's own rounding, in integer arithmetic."""
    return round_to(np.asarray(values, np.float64), dtype).astype(np.float32)


def op(name: str) -> Any:
    return OPERATORS[name]


def same(got: NkiTensor, wanted: Array) -> None:
    """Bit for bit, but for NaN's sign and what it carries."""
    np.testing.assert_array_equal(got.values().reshape(np.shape(wanted)), wanted)


def near(got: NkiTensor, wanted: Array) -> None:
    """To float32's rounding of a few operations."""
    np.testing.assert_allclose(got.values().reshape(np.shape(wanted)), wanted, rtol=1e-5, atol=1e-5)
