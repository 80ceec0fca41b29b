"""Types, memories and views of the current namespace, from nki/api/nki/language of AWS's documentation."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from neuron.emulation.tiles import HBM, PSUM, SBUF, empty, random, rounded, same, tile
from xattn_elsewhere.nki.emulation import language
from xattn_elsewhere.nki.emulation.access import ds
from xattn_elsewhere.nki.emulation.tensor import LimitError, Region

# Halfway cases of bfloat16 and float16, their overflow, subnormals, and what is no number.
HARD = np.array(
    [1 + 2.0**-8, 1 + 3 * 2.0**-8, 1 + 2.0**-11, 65519.0, 65520.0, 1e38, 3.4e38, 2.0**-130, 3e-8, -0.0, np.inf, np.nan],
    np.float32,
)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_what_is_stored_is_rounded_to_nearest_even(dtype: str) -> None:
    values = np.concatenate([HARD, random(1000), random(1000) * np.float32(1e-5)])[None, :]
    same(tile(values, dtype), rounded(values, dtype))


@pytest.mark.parametrize("value", [0.5, -1.0, 2.0**32, np.nan])
def test_what_is_no_integer_of_the_type_is_not_stored_as_one(value: float) -> None:
    with pytest.raises(ValueError, match="uint32"):
        tile(np.array([[value]], np.float32), "uint32")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("buffer", [SBUF, PSUM, HBM, Region.shared_hbm])
def test_what_was_never_written_is_nan(dtype: str, buffer: Region) -> None:
    made = empty(4, 6, dtype=dtype, buffer=buffer)
    assert np.isnan(made.values()).all()
    made[1:3, 2:4].write(np.zeros((2, 2), np.float32))
    assert np.isnan(made.values()).sum() == 24 - 4


def test_tiles_of_one_address_share_their_bytes() -> None:
    first = language.ndarray((128, 4), "float32", address=(0, 64))
    first.write(random(128, 4))
    again = language.ndarray((128, 8), "bfloat16", address=(0, 64))
    assert np.isnan(again.values()).all()
    again.write(np.full((128, 8), 1.5, np.float32))
    # 1.5 is 0x3FC0 in bfloat16.
    np.testing.assert_array_equal(first.data.view(np.uint32), np.uint32(0x3FC03FC0))
    beside = language.ndarray((128, 4), "float32", address=(0, 80))
    same(again, np.full((128, 8), 1.5, np.float32))
    assert np.isnan(beside.values()).all()


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((129, 4), {}),
        ((0, 4), {}),
        ((65, 4), {"address": (64, 0)}),
        ((128, 49153), {}),
        ((128, 4), {"address": (0, 192 * 1024 - 15)}),
        ((128, 4097), {"buffer": PSUM}),
        ((128, 4), {"buffer": PSUM, "address": (0, 16 * 1024 - 15)}),
    ],
)
def test_what_does_not_fit_is_refused(shape: tuple[int, ...], options: dict[str, Any]) -> None:
    with pytest.raises(LimitError):
        language.ndarray(shape, "float32", **options)


@pytest.mark.parametrize(
    ("key", "shape", "on_chip"),
    [
        (np.s_[:, 3], (8, 1, 5), False),
        (np.s_[:, 3], (8, 5), True),
        (np.s_[2], (1, 4, 5), True),
        (np.s_[2], (4, 5), False),
        (np.s_[2, 1, 0], (1, 1), True),
        (np.s_[2, 1, 0], (1,), False),
        (np.s_[..., 1:3], (8, 4, 2), True),
        (np.s_[-1, :, -2], (1, 4), True),
        (np.s_[:, :, ::2], (8, 4, 3), True),
        (np.s_[:, ds(1, 2)], (8, 2, 5), True),
    ],
)
def test_an_index_keeps_the_partitions_and_two_axes(key: Any, shape: tuple[int, ...], on_chip: bool) -> None:
    values = random(8, 4, 5)
    made = tile(values, buffer=SBUF if on_chip else HBM)
    if shape == (8, 1, 5):  # in HBM an integer drops its axis
        shape = (8, 5)
    assert made[key].shape == shape
    same(made[key], values[key].reshape(shape))


@pytest.mark.parametrize("key", [np.s_[:, 5], np.s_[:, 2:6], np.s_[:, 3:3], np.s_[-9], np.s_[0, 0, 0]])
def test_an_index_that_leaves_the_tensor_is_refused(key: Any) -> None:
    with pytest.raises(LimitError):
        empty(8, 5)[key]


@pytest.mark.parametrize("buffer", [SBUF, HBM])
def test_an_access_pattern_counts_elements_of_the_tensor(buffer: Region) -> None:
    values = random(8, 4, 6)
    view = tile(values, buffer=buffer).ap([[48, 3], [0, 2], [6, 3], [2, 2]], offset=24 + 7)
    at = 31 + np.add.outer(np.add.outer(np.add.outer(48 * np.arange(3), [0, 0]), 6 * np.arange(3)), [0, 2])
    assert view.shape == (3, 2, 3, 2)
    same(view, values.reshape(-1)[at])


def test_an_access_pattern_writes_where_it_reads() -> None:
    made = tile(np.zeros((4, 6), np.float32))
    made.ap([[6, 4], [2, 3]], offset=1).write(np.ones((4, 3), np.float32))
    same(made, np.tile(np.array([0, 1], np.float32), (4, 3)))


def test_an_access_pattern_starts_at_a_scalar() -> None:
    values, index = random(2, 8, 6), tile(np.array([[5]], np.float32), "uint32")
    view = tile(values, buffer=HBM).ap([[6, 2], [1, 6]], offset=48, scalar_offset=index, indirect_dim=1)
    same(view, values[1, 5:7])


@pytest.mark.parametrize(
    ("pattern", "offset"),
    [
        ([[6, 5], [1, 6]], 0),  # five partitions of four
        ([[6, 4], [1, 6]], 1),  # the last element of a partition is the next one's
        ([[3, 4], [1, 2]], 0),  # half a partition
        ([[6, 4], [1, 0]], 0),
        ([[6, 4], [1, 1]], -1),
    ],
)
def test_an_access_pattern_that_leaves_a_partition_is_refused(pattern: list[list[int]], offset: int) -> None:
    with pytest.raises(LimitError):
        empty(4, 6).ap(pattern, offset=offset)


def test_a_tile_is_seen_in_another_shape() -> None:
    values = random(8, 4, 6)
    same(tile(values).reshape((8, 24))[:, 5:7], values.reshape(8, 24)[:, 5:7])
    for shape in ((4, 48), (8, 23)):
        with pytest.raises(LimitError):
            empty(8, 4, 6).reshape(shape)


def test_nobody_assigns_to_a_tile_or_asks_whether_it_is_true() -> None:
    made = empty(4, 6)
    with pytest.raises(LimitError, match=r"nki\.isa alone"):
        made[0, 0] = 1.0
    with pytest.raises(LimitError, match="branch"):
        bool(made)


def test_what_is_written_has_as_many_elements_in_each_partition() -> None:
    made, values = empty(8, 6), random(8, 2, 3)
    made.write(values)
    same(made, values.reshape(8, 6))
    for shape in ((4, 12), (8, 5), (48,)):
        with pytest.raises(LimitError, match="written"):
            made.write(random(*shape))
    empty(8, 6, buffer=HBM).write(random(4, 12))


def test_what_a_kernel_may_only_name() -> None:
    for name in ("float8_e4m3", "float4_e2m1fn_x4"):
        with pytest.raises(NotImplementedError, match=name):
            empty(4, 6, dtype=language.NAMES[name])
    with pytest.raises(NotImplementedError, match="gelu"):
        language.NAMES["gelu"].of(random(2))
    with pytest.raises(NotImplementedError, match=r"nki\.language\.add"):
        language.NAMES["add"](1, 2)


def test_fields_of_a_kernels_class_need_no_annotation() -> None:
    @dataclasses.dataclass
    class Buffers(language.NKIObject):
        first = None
        second: int = 2

        def method(self) -> int:
            return self.second

    made: Callable[..., Any] = Buffers
    assert made(first=1, second=3) == made(first=1, second=3) != made()
    assert made(second=4).method() == 4
