"""The Vector Engine's instructions, from their pages of AWS's documentation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from neuron.emulation.tiles import HBM, PSUM, SBUF, Array, empty, near, op, random, rounded, same, tile
from xattn_elsewhere.nki.emulation.isa import vector
from xattn_elsewhere.nki.emulation.isa.target import Engine, ReduceCmd
from xattn_elsewhere.nki.emulation.language import ndarray
from xattn_elsewhere.nki.emulation.tensor import LimitError

LOWEST = np.finfo(np.float32).min

BINARY: dict[str, Callable[[Any, Any], Any]] = {
    "add": np.add,
    "subtract": np.subtract,
    "multiply": np.multiply,
    "maximum": np.maximum,
    "minimum": np.minimum,
    "greater_equal": lambda a, b: (a >= b).astype(np.float32),
    "less": lambda a, b: (a < b).astype(np.float32),
}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", BINARY)
def test_tensor_tensor(name: str, dtype: str) -> None:
    left, right = random(128, 30), random(128, 30, seed=1)
    dst = empty(128, 30, dtype=dtype)
    vector.tensor_tensor(dst, tile(left, "bfloat16"), tile(right), op(name))
    same(dst, rounded(BINARY[name](rounded(left, "bfloat16"), right), dtype))


@pytest.mark.parametrize("reverse", [(False, False), (True, False), (False, True)])
def test_tensor_scalar(reverse: tuple[bool, bool]) -> None:
    values, lanes = random(64, 30), random(64, 1, seed=1)
    dst = empty(64, 30)
    vector.tensor_scalar(
        *(dst, tile(values), op("subtract"), tile(lanes)),
        *(reverse[0], op("multiply"), 3.0, reverse[1]),
    )
    same(dst, (lanes - values if reverse[0] else values - lanes) * np.float32(3))


def test_tensor_scalar_does_not_round_between_its_operators() -> None:
    dst = empty(1, 1, dtype="bfloat16")
    one = tile(np.ones((1, 1), np.float32), "bfloat16")
    vector.tensor_scalar(dst, one, op("add"), 2.0**-10, op1=op("subtract"), operand1=1.0)
    same(dst, np.array([[2.0**-10]], np.float32))


def test_scalar_tensor_tensor() -> None:
    values, lanes, other = random(64, 30), random(64, 1, seed=1), random(64, 30, seed=2)
    dst = empty(64, 30)
    vector.scalar_tensor_tensor(dst, tile(values), op("multiply"), tile(lanes), op("subtract"), tile(other))
    same(dst, values * lanes - other)
    vector.scalar_tensor_tensor(
        dst, tile(values), op("multiply"), tile(lanes), op("subtract"), tile(other), reverse1=True
    )
    same(dst, other - values * lanes)
    vector.scalar_tensor_tensor(dst, tile(values), op("subtract"), 2.0, op("add"), tile(other), reverse0=True)
    same(dst, np.float32(2) - values + other)


def test_tensor_scalar_reduce_reduces_what_is_not_rounded_yet() -> None:
    values = random(64, 30)
    dst, result = empty(64, 30, dtype="bfloat16"), empty(64, 1)
    vector.tensor_scalar_reduce(dst, tile(values), op("multiply"), 3.0, op("maximum"), result)
    same(dst, rounded(values * np.float32(3), "bfloat16"))
    same(result, (values * np.float32(3)).max(1, keepdims=True))


@pytest.mark.parametrize(("name", "reduce"), [("add", np.sum), ("maximum", np.max), ("minimum", np.min)])
@pytest.mark.parametrize("negate", [True, False])
def test_tensor_reduce(name: str, reduce: Callable[..., Array], negate: bool) -> None:
    values = random(64, 4, 30)
    sign = -1 if negate else 1
    dst = empty(64, 4)
    vector.tensor_reduce(dst, op(name), tile(values), 2, negate=negate)
    near(dst, sign * reduce(values, axis=2))
    all_free = empty(64, 1)
    vector.tensor_reduce(all_free, op(name), tile(values), (1, 2), negate=negate)
    near(all_free, sign * reduce(values, axis=(1, 2)))


@pytest.mark.parametrize("axis", [0, 1, (0, 1, 2), (1,)])
def test_tensor_reduce_is_over_the_last_free_axes(axis: Any) -> None:
    with pytest.raises(LimitError):
        vector.tensor_reduce(empty(64, 30), op("add"), tile(random(64, 4, 30)), axis)


def test_reciprocal() -> None:
    values = random(64, 3)
    values[0, 0] = 0
    dst = empty(64, 3)
    vector.reciprocal(dst, tile(values))
    same(dst, np.float32(1) / values)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32"])
def test_memset(dtype: str) -> None:
    dst = empty(8, 3, dtype=dtype)
    vector.memset(dst[:, 1:], 3.0)
    np.testing.assert_array_equal(dst.values()[:, 1:], 3)
    assert not (dst.values()[:, 0] == 3).any()


def test_tensor_copy() -> None:
    values = random(64, 30)
    dst = empty(64, 2, 15, dtype="bfloat16")
    vector.tensor_copy(dst, tile(values, buffer=PSUM))
    same(dst, rounded(values, "bfloat16").reshape(64, 2, 15))
    # Bit for bit: float32 has no 2^24 + 1.
    numbers = empty(1, 1, dtype="int32")
    numbers.data[...] = 2**24 + 1
    copied = empty(1, 1, dtype="int32")
    vector.tensor_copy(copied, numbers)
    assert copied.data.item() == 2**24 + 1


def test_tensor_copy_by_engines_that_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LimitError, match="PSUM"):
        vector.tensor_copy(empty(8, 3), tile(random(8, 3), buffer=PSUM), engine=Engine.gpsimd)
    vector.tensor_copy(empty(8, 3), tile(random(8, 3)), engine=Engine.scalar)
    monkeypatch.setenv("NEURON_PLATFORM_TARGET_OVERRIDE", "trn1")
    with pytest.raises(LimitError, match="v2"):
        vector.tensor_copy(empty(8, 3), tile(random(8, 3)), engine=Engine.scalar)


def test_range_select() -> None:
    values = random(16, 40)
    low, high = np.arange(16, dtype=np.float32)[:, None] + 95, np.full((16, 1), 120, np.float32)
    dst, result = empty(16, 40), empty(16, 1)
    vector.range_select(
        dst,
        tile(values, buffer=PSUM),
        op("greater_equal"),
        op("less"),
        tile(low),
        tile(high),
        reduce_res=result,
        reduce_op=op("maximum"),
        range_start=100,
    )
    place = 100 + np.arange(40)[None, :]
    wanted = np.where((place >= low) & (place < high), values, LOWEST)
    same(dst, wanted)
    same(result, wanted.max(1, keepdims=True))


@pytest.mark.parametrize(
    "changed",
    [
        {"on_false_value": -1e4},
        {"comp_op0": op("not_equal")},
        {"bound": "bfloat16"},
        {"reduce_op": op("add")},
        {"range_start": 2**24},
        {"lanes": 15},
    ],
)
def test_range_select_refuses(changed: dict[str, Any]) -> None:
    bound = tile(np.zeros((changed.pop("lanes", 16), 1), np.float32), changed.pop("bound", "float32"))
    options = {"comp_op0": op("less"), "reduce_op": op("maximum"), **changed}
    with pytest.raises(LimitError):
        vector.range_select(
            empty(16, 4), tile(random(16, 4)), comp_op1=op("less"), bound0=bound, bound1=bound,
            reduce_res=empty(16, 1), **options,
        )  # fmt: skip


def test_range_select_is_not_on_trn1(monkeypatch: pytest.MonkeyPatch) -> None:
    bound = tile(np.zeros((16, 1), np.float32))
    arguments = (empty(16, 4), tile(random(16, 4)), op("less"), op("less"), bound, bound)
    vector.range_select(*arguments)
    with pytest.raises(NotImplementedError, match="ReduceCmd"):
        vector.range_select(*arguments, reduce_cmd=ReduceCmd.reduce)
    monkeypatch.setenv("NEURON_PLATFORM_TARGET_OVERRIDE", "trn1")
    with pytest.raises(LimitError, match="v2"):
        vector.range_select(*arguments)


def test_nc_stream_shuffle_in_each_quadrant() -> None:
    values, kept = random(64, 3), random(64, 3, seed=1)
    mask = [*range(31, 0, -1), 255]
    dst = tile(kept)
    vector.nc_stream_shuffle(dst, tile(values), mask)
    wanted = values.reshape(2, 32, 3)[:, [*mask[:-1], 0]]
    wanted[:, 31] = kept.reshape(2, 32, 3)[:, 31]
    same(dst, wanted.reshape(64, 3))


def test_nc_stream_shuffle_of_itself() -> None:
    made = empty(32, 2)
    made[0:1].write(np.array([[1, 2]], np.float32))
    vector.nc_stream_shuffle(made, made[0:1], [0] * 32)
    same(made, np.tile(np.array([1, 2], np.float32), (32, 1)))


@pytest.mark.parametrize(
    ("dst", "src", "mask"),
    [
        (empty, {"dtype": "bfloat16"}, [0] * 32),
        (empty, {}, [0] * 31),
        (empty, {}, [1] * 32),  # of one partition there is no second
    ],
)
def test_nc_stream_shuffle_refuses(dst: Any, src: dict[str, Any], mask: list[int]) -> None:
    with pytest.raises(LimitError):
        vector.nc_stream_shuffle(dst(32, 2), tile(random(1, 2), **src), mask)


@pytest.mark.parametrize(
    "call",
    [
        lambda a, b: vector.tensor_tensor(empty(8, 3), a, b, op("add")),
        lambda a, b: vector.scalar_tensor_tensor(empty(8, 3), a, op("add"), 1.0, op("add"), b),
    ],
)
def test_two_inputs_in_psum_are_refused(call: Callable[[Any, Any], None]) -> None:
    values = random(8, 3)
    for buffers in ((SBUF, SBUF), (SBUF, PSUM), (PSUM, SBUF)):
        call(*(tile(values, buffer=buffer) for buffer in buffers))
    with pytest.raises(LimitError, match="two inputs in PSUM"):
        call(*(tile(values, buffer=PSUM) for _ in range(2)))


def test_operands_of_tensor_scalar_are_float32_vectors() -> None:
    dst, data = empty(8, 3), tile(random(8, 3))
    for operand in (tile(random(8, 1), "bfloat16"), tile(random(8, 3)), tile(random(7, 1))):
        with pytest.raises(LimitError):
            vector.tensor_scalar(dst, data, op("add"), operand)


def test_tiles_are_on_the_chip_and_of_one_size() -> None:
    for dst, src in ((empty(8, 3), empty(8, 3, buffer=HBM)), (empty(8, 3), empty(8, 4)), (empty(8, 3), empty(6, 4))):
        with pytest.raises(LimitError):
            vector.tensor_copy(dst, src)


@pytest.mark.parametrize(("start", "count"), [(0, 128), (32, 32), (64, 64), (96, 32)])
def test_ranges_of_partitions(start: int, count: int) -> None:
    vector.memset(ndarray((count, 3), "float32", address=(start, 0)), 1.0)
    whole = tile(random(128, 3))
    vector.memset(whole[start : start + count], 1.0)
    for other in (start + 1, start + 16):
        with pytest.raises(LimitError, match="partitions from"):
            vector.memset(whole[other : other + 1], 1.0)
        with pytest.raises(LimitError, match="partitions from"):
            vector.memset(ndarray((1, 3), "float32", address=(other, 0)), 1.0)
    if start == 32:
        with pytest.raises(LimitError, match="partitions from"):
            vector.memset(whole[start : start + count + 1], 1.0)
