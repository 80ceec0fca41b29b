"""The legacy namespace, from general/nki/api of AWS's documentation of SDK 2.26."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
from neuron.emulation.tiles import Array, random, rounded
from xattn_elsewhere.nki.emulation.access import ds
from xattn_elsewhere.nki.emulation.neuronxcc import isa
from xattn_elsewhere.nki.emulation.neuronxcc import language as nl
from xattn_elsewhere.nki.emulation.neuronxcc.tile import Partitions, Tile, tile_of
from xattn_elsewhere.nki.emulation.tensor import LimitError, Region

PSUM = Region.psum


add, subtract, multiply, maximum = (nl.NAMES[name] for name in ("add", "subtract", "multiply", "maximum"))


def tile(values: Array, dtype: str = "float32", region: Region = Region.sbuf) -> Tile:
    return tile_of(values, dtype, region)


def hbm(values: Array, dtype: str = "float32") -> Tile:
    made = nl.ndarray(values.shape, dtype, buffer=Region.hbm)
    made.write(values)
    return made


def same(got: Tile, wanted: Array) -> None:
    np.testing.assert_array_equal(got.values(), wanted)


def near(got: Tile, wanted: Array) -> None:
    np.testing.assert_allclose(got.values(), wanted, rtol=1e-5, atol=1e-5)


BLOCKS = (3, 2, Partitions(8), 5)


@pytest.mark.parametrize(
    ("key", "shape"),
    [
        (np.s_[1], (2, 8, 5)),
        (np.s_[1, 0], (8, 5)),
        (np.s_[1, 0, :, 3], (8, 1)),
        (np.s_[1, 0, 2, :], (1, 5)),
        (np.s_[1, 0, :, ds(1, 3)], (8, 3)),
        (np.s_[1, :, :, 1:3], (2, 8, 2)),
    ],
)
def test_an_integer_drops_a_block_and_keeps_an_axis_of_a_tile(key: Any, shape: tuple[int, ...]) -> None:
    values = random(3, 2, 8, 5)
    made = nl.ndarray(BLOCKS, "float32")
    assert np.isnan(made.values()).all()
    made.write(values)
    assert made[key].shape == shape
    same(made[key], values[key].reshape(shape))
    assert made[1][0].shape == (8, 5)
    same(made[1][0, :, 2], values[1, 0, :, 2:3])


def test_indices_of_hbm_are_numpys() -> None:
    values = random(3, 2, 8)
    made = hbm(values)
    same(made[1], values[1])
    same(made[1, 0, 2:5], values[1, 0, 2:5])
    same(made[1, 0, 2], values[1, 0, 2])
    for key in (np.s_[3], np.s_[0, 0, 5:9]):
        with pytest.raises(LimitError):
            made[key]


def test_assignment() -> None:
    made = nl.zeros(BLOCKS, "bfloat16")
    values = random(8, 1)
    made[1, 0, :, 3] = tile(values)
    made[2, 1, :, :] = 7
    wanted = np.zeros((3, 2, 8, 5), np.float32)
    wanted[1, 0, :, 3], wanted[2, 1] = rounded(values, "bfloat16")[:, 0], 7
    same(made, wanted)
    for shape in ((5, 8), (8, 4), (1, 5)):
        with pytest.raises(LimitError):
            made[0, 0] = tile(random(*shape))


@pytest.mark.parametrize(("mask", "happens"), [(None, True), (True, True), (np.True_, True), (False, False)])
def test_what_a_mask_skips_is_not_assigned(mask: Any, happens: bool) -> None:
    values, made = random(8, 5), nl.zeros((8, 5), "float32")
    made[:, :] = nl.copy(tile(values), mask=mask)
    same(made, values if happens else 0 * values)
    made[:, :] += nl.copy(tile(values), mask=mask)
    same(made, 2 * values if happens else 0 * values)


def test_masks_that_are_not_emulated() -> None:
    with pytest.raises(NotImplementedError, match="copy"):
        nl.copy(tile(random(8, 5)), mask=np.ones((8, 5), bool))
    with pytest.raises(LimitError, match="skipped"):
        nl.copy(nl.copy(tile(random(8, 5)), mask=False))


def test_loop_reduce_reduces_onto_what_is_there() -> None:
    values, made = random(8, 5), nl.zeros((8, 5), "float32")
    for _ in range(3):
        made[:, :] = nl.loop_reduce(tile(values), np.add, loop_indices=(0,), dtype="float32")
    same(made, values + values + values)
    made[:, :] = nl.loop_reduce(tile(values), np.add, loop_indices=(0,), mask=False)
    same(made, values + values + values)


def test_operators_round_to_the_widest_of_their_tiles() -> None:
    values = random(8, 5)
    for made, dtype in ((tile(values, "bfloat16") * 0.3, "bfloat16"), (-1 * tile(values), "float32")):
        assert made.dtype.name == dtype
    narrow = rounded(values, "bfloat16")
    same(tile(values, "bfloat16") * 0.3, rounded(narrow * np.float32(0.3), "bfloat16"))
    same(add(tile(values, "bfloat16"), tile(values)), narrow + values)
    same(multiply(tile(values), tile(values[:, :1])), values * values[:, :1])
    same(maximum(tile(values), 0.0), np.maximum(values, 0))
    same(subtract(tile(values), 1.0, dtype="bfloat16"), rounded(values - np.float32(1), "bfloat16"))
    same(add(nl.zeros((8, 1), "float32"), tile(values[:1, :1])), np.tile(values[:1, :1], (8, 1)))
    with pytest.raises(LimitError):
        add(tile(values), tile(values[:7]))
    with pytest.raises(NotImplementedError):
        add(tile(values, "bfloat16"), tile(values, "float16"))


def test_moves() -> None:
    values = random(8, 5)
    same(nl.load(hbm(values), dtype="bfloat16"), rounded(values, "bfloat16"))
    same(nl.load(hbm(values)[2, 3]), values[2:3, 3:4])
    same(nl.load_transpose2d(hbm(values)), values.T)
    same(isa.dma_transpose(hbm(values)), values.T)
    same(isa.tensor_copy(tile(values), dtype="bfloat16"), rounded(values, "bfloat16"))
    out = nl.ndarray((2, 8, 5), "bfloat16", buffer=Region.shared_hbm)
    nl.store(out[1], tile(values))
    same(out[1], rounded(values, "bfloat16"))
    assert np.isnan(out[0].values()).all()
    on_chip = tile(values)
    for call in (nl.load, nl.load_transpose2d, partial(nl.store, on_chip)):
        with pytest.raises(LimitError, match="HBM"):
            call(on_chip)


def test_products() -> None:
    left, right = random(64, 128), random(64, 512, seed=1)
    wanted = rounded(left, "bfloat16").T @ rounded(right, "bfloat16")
    x, y = tile(left, "bfloat16"), tile(right, "bfloat16")
    for made in (nl.matmul(x, y, transpose_x=True), isa.nc_matmul(x, y)):
        near(made, wanted)
        assert (made.buffer, made.dtype.name) == (PSUM, "float32")
    total = nl.zeros((128, 512), np.float32, buffer=PSUM, lazy_initialization=True)
    total[:, :] += isa.nc_matmul(x, y)
    total[:, :] += isa.nc_matmul(x, y)
    near(total, 2 * wanted)
    with pytest.raises(LimitError):
        isa.nc_matmul(x, tile(right))
    with pytest.raises(LimitError):
        isa.nc_matmul(tile(random(64, 129)), tile(right))
    with pytest.raises(NotImplementedError):
        nl.matmul(x, y)


def test_transposes() -> None:
    values = random(128, 40)
    same(isa.nc_transpose(tile(values, "bfloat16")), rounded(values, "bfloat16").T)
    with pytest.raises(LimitError):
        isa.nc_transpose(tile(random(64, 129)))


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_activation(dtype: str | None) -> None:
    values, bias = random(64, 30), random(64, 1, seed=1)
    wanted = np.exp(values * np.float32(-0.5) + bias)
    made = isa.activation(np.exp, tile(values), bias=tile(bias), scale=-0.5, dtype=dtype)
    assert made.dtype.name == (dtype or "float32")
    np.testing.assert_allclose(made.values(), wanted, rtol=1e-5 if dtype is None else 2.0**-8)
    sums = nl.ndarray((64, 2), "float32")
    isa.activation_reduce(np.exp, tile(values), reduce_op=add, reduce_res=sums[:, 1], dtype=dtype)
    near(sums[:, 1], np.exp(values).sum(1, keepdims=True))
    assert np.isnan(sums.values()[:, 0]).all()


def test_reductions() -> None:
    values = random(64, 30)
    same(isa.tensor_reduce(np.max, tile(values), axis=(1,), negate=True), -values.max(1, keepdims=True))
    near(isa.tensor_reduce(np.add, tile(values), axis=(1,)), values.sum(1, keepdims=True))
    near(nl.NAMES["sum"](tile(values), axis=1, dtype="float32"), values.sum(1, keepdims=True))
    near(isa.tensor_partition_reduce(np.add, tile(values)), values.sum(0, keepdims=True))


def test_selections_and_two_operators() -> None:
    values, lanes, other = random(64, 30), random(64, 1, seed=1), random(64, 30, seed=2)
    i, j = nl.NAMES["mgrid"][0:64, 0:30]
    same(isa.affine_select(pred=i >= j, on_true_tile=tile(values), on_false_value=-9.0), np.where(i >= j, values, -9))
    made = isa.scalar_tensor_tensor(
        data=tile(values), op0=np.subtract, operand0=tile(lanes), op1=np.multiply, operand1=tile(other)
    )
    same(made, (values - lanes) * other)
    with pytest.raises(LimitError):
        isa.affine_select(pred=i[:3] >= 0, on_true_tile=tile(values), on_false_value=0.0)
    with pytest.raises(NotImplementedError):
        isa.tensor_reduce(np.median, tile(values), axis=(1,))


@pytest.mark.parametrize(
    ("shape", "dtype", "region"),
    [
        ((Partitions(129), 4), "float32", Region.sbuf),
        ((4, Partitions(129), 4), "float32", Region.sbuf),
        ((Partitions(128), 513), "float32", PSUM),
        ((9, Partitions(128), 512), "float32", PSUM),
    ],
)
def test_what_does_not_fit_is_refused(shape: Any, dtype: str, region: Region) -> None:
    with pytest.raises(LimitError):
        nl.ndarray(shape, dtype, buffer=region)


def test_whole_banks_of_psum_fit() -> None:
    assert nl.ndarray((8, Partitions(128), 512), "float32", buffer=PSUM).shape == (8, 128, 512)
