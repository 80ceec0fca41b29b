"""nki.isa.nc_matmul and nki.isa.nc_transpose, from their pages of AWS's documentation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from neuron.emulation.tiles import HBM, PSUM, SBUF, empty, near, random, rounded, same, tile
from xattn_elsewhere.nki.emulation.isa.target import Engine
from xattn_elsewhere.nki.emulation.isa.tensor import nc_matmul, nc_transpose
from xattn_elsewhere.nki.emulation.isa.vector import memset
from xattn_elsewhere.nki.emulation.language import ndarray
from xattn_elsewhere.nki.emulation.tensor import LimitError


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("sizes", [(128, 128, 512), (1, 1, 1), (40, 7, 100)])
def test_the_product_contracts_the_partitions(sizes: tuple[int, int, int], dtype: str) -> None:
    contracted, rows, columns = sizes
    left, right = random(contracted, rows), random(contracted, columns, seed=1)
    dst = empty(rows, columns, buffer=PSUM)
    nc_matmul(dst, tile(left, dtype), tile(right, dtype))
    near(dst, rounded(left, dtype).T @ rounded(right, dtype))


def test_the_first_product_overwrites_and_others_add() -> None:
    left, right = tile(random(16, 8)), tile(random(16, 20, seed=1))
    once = left.values().T @ right.values()
    dst = empty(8, 20, buffer=PSUM)
    nc_matmul(dst, left, right)
    near(dst, once)
    nc_matmul(dst, left, right)
    near(dst, 2 * once)
    nc_matmul(dst, left, right, accumulate=False)
    near(dst, once)
    nc_matmul(dst, left, right, accumulate=True)
    near(dst, 2 * once)


def test_what_another_engine_wrote_is_overwritten() -> None:
    left, right = tile(random(16, 8)), tile(random(16, 20, seed=1))
    dst = empty(8, 40, buffer=PSUM)
    memset(dst, 100.0)
    nc_matmul(dst[:, :20], left, right)
    near(dst[:, :20], left.values().T @ right.values())
    same(dst[:, 20:], np.full((8, 20), 100, np.float32))
    memset(dst, 100.0)
    nc_matmul(dst[:, :20], left, right)
    near(dst[:, :20], left.values().T @ right.values())
    with pytest.raises(LimitError, match="no matmul wrote"):
        nc_matmul(dst[:, 20:], left, right, accumulate=True)


def test_views_of_a_tile_are_started_on_their_own() -> None:
    left, right = tile(random(16, 8)), tile(random(16, 4, seed=1))
    once = left.values().T @ right.values()
    dst = empty(8, 2, 4, buffer=PSUM)
    nc_matmul(dst[:, 0, :], left, right)
    nc_matmul(dst.ap([[8, 8], [1, 4]], offset=4), left, right)
    nc_matmul(dst[:, 1, :], left, right)
    near(dst, np.stack([once, 2 * once], 1))


def test_what_was_not_written_poisons_the_product() -> None:
    left, right = empty(16, 8), tile(random(16, 20))
    left[:15].write(random(15, 8))
    dst = empty(8, 20, buffer=PSUM)
    nc_matmul(dst, left, right)
    assert np.isnan(dst.values()).all()
    nc_matmul(dst, left[:15], right[:15], accumulate=False)
    assert np.isfinite(dst.values()).all()


REFUSED: dict[str, tuple[Any, Any, Any]] = {
    "stationary of 129": ((16, 129), (16, 20), {}),
    "moving of 513": ((16, 8), (16, 513), {}),
    "other partitions": ((16, 8), (17, 20), {}),
    "float32 by bfloat16": ((16, 8), (16, 20), {"moving": "bfloat16"}),
    "integers": ((16, 8), (16, 20), {"stationary": "int32", "moving": "int32"}),
    "operand in PSUM": ((16, 8), (16, 20), {"buffer": PSUM}),
    "operand in HBM": ((16, 8), (16, 20), {"buffer": HBM}),
    "to SBUF": ((16, 8), (16, 20), {"to": SBUF}),
    "to bfloat16": ((16, 8), (16, 20), {"dst": "bfloat16"}),
    "to another shape": ((16, 8), (16, 20), {"shape": (20, 8)}),
}


@pytest.mark.parametrize(("left", "right", "options"), REFUSED.values(), ids=REFUSED)
def test_refused(left: tuple[int, int], right: tuple[int, int], options: dict[str, Any]) -> None:
    buffer = options.get("buffer", SBUF)
    stationary = tile(np.ones(left, np.float32), options.get("stationary", "float32"), buffer)
    moving = tile(np.ones(right, np.float32), options.get("moving", "float32"), buffer)
    shape = options.get("shape", (min(left[1], 128), right[1]))
    dst = empty(*shape, dtype=options.get("dst", "float32"), buffer=options.get("to", PSUM))
    with pytest.raises(LimitError):
        nc_matmul(dst, stationary, moving)


def test_a_product_stays_in_one_bank() -> None:
    left, right = tile(random(16, 8)), tile(random(16, 300))
    whole = ndarray((8, 4096), "float32", PSUM, address=(0, 0))
    nc_matmul(whole[:, 512:812], left, right)
    with pytest.raises(LimitError, match="one bank"):
        nc_matmul(whole[:, 300:600], left, right)
    nc_matmul(ndarray((8, 300), "float32", PSUM, address=(0, 2048)), left, right)
    with pytest.raises(LimitError, match="one bank"):
        nc_matmul(ndarray((8, 300), "float32", PSUM, address=(0, 1024)), left, right)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_transposes_are_bit_for_bit(dtype: str) -> None:
    values = random(100, 128)
    values[3, 5], values[4, 6] = np.nan, np.inf
    dst = empty(128, 100, dtype=dtype, buffer=PSUM)
    nc_transpose(dst, tile(values, dtype))
    same(dst, rounded(values, dtype).T)


def test_free_axes_are_one_in_a_transpose() -> None:
    values = random(100, 4, 8)
    dst = empty(32, 100, buffer=PSUM)
    nc_transpose(dst, tile(values))
    same(dst, values.reshape(100, 32).T)


def test_the_vector_engine_transposes_small_tiles_anywhere() -> None:
    values = random(32, 20)
    for engine in (Engine.unknown, Engine.vector):
        dst = empty(20, 32)
        nc_transpose(dst, tile(values), engine=engine)
        same(dst, values.T)


@pytest.mark.parametrize(
    ("shape", "dst", "engine"),
    [
        ((64, 129), {"buffer": PSUM, "shape": (128, 64)}, Engine.unknown),
        ((64, 33), {}, Engine.unknown),
        ((64, 33), {"buffer": PSUM}, Engine.vector),
        ((64, 33), {"buffer": PSUM, "dtype": "bfloat16"}, Engine.unknown),
        ((32, 32), {}, Engine.tensor),
        ((64, 33), {"buffer": PSUM, "shape": (64, 33)}, Engine.unknown),
    ],
)
def test_transposes_refused(shape: tuple[int, int], dst: dict[str, Any], engine: Engine) -> None:
    to = empty(*dst.pop("shape", shape[::-1]), **dst)
    with pytest.raises(LimitError):
        nc_transpose(to, tile(random(*shape)), engine=engine)
