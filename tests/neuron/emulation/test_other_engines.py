"""The Scalar and GpSimd Engines' instructions and DMA, from their pages of AWS's documentation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from neuron.emulation.tiles import HBM, PSUM, SBUF, empty, near, op, random, rounded, same, tile
from xattn_elsewhere.nki.emulation.isa import dma, gpsimd, scalar
from xattn_elsewhere.nki.emulation.tensor import LimitError, Region


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("vectors", [True, False])
def test_activation(vectors: bool, dtype: str) -> None:
    values, scale, bias = random(64, 30), random(64, 1, seed=1), random(64, 1, seed=2)
    dst = empty(64, 30, dtype=dtype)
    if not vectors:
        scale, bias = np.float32(0.3), np.float32(-0.7)
    given = (tile(bias), tile(scale)) if vectors else (-0.7, 0.3)
    scalar.activation(dst, op("exp"), tile(values, buffer=PSUM), *given)
    near(dst, rounded(np.exp(values * scale + bias), dtype))


def test_activation_by_default_neither_scales_nor_adds() -> None:
    values = random(64, 30)
    dst = empty(64, 30)
    scalar.activation(dst, op("copy"), tile(values))
    same(dst, values)


def test_log_means_nothing_outside_of_its_range() -> None:
    values = np.array([[2.0**-65, 2.0**-64, 1, 2.0**64, 2.0**65, 0, -1]], np.float32)
    dst = empty(1, 7)
    scalar.activation(dst, op("log"), tile(values))
    near(dst, np.where([0, 1, 1, 1, 0, 0, 0], np.log(np.abs(values) + (values == 0)), np.nan))


def test_activation_reduce_sums_what_is_not_rounded_yet() -> None:
    values = random(64, 2, 300)
    dst, result = empty(64, 2, 300, dtype="bfloat16"), empty(64, 1)
    scalar.activation_reduce(dst, op("exp"), tile(values), op("add"), result, bias=1.0)
    exact = np.exp(values.astype(np.float64) + 1)
    near(result, exact.sum((1, 2))[:, None])
    assert np.abs(dst.values().sum((1, 2)) - exact.sum((1, 2))).max() > 1e-3


def test_activation_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    dst, data, bfloat16 = empty(8, 3), tile(random(8, 3)), tile(random(8, 1), "bfloat16")
    scalar.activation(dst, op("exp"), data, bias=bfloat16)
    with pytest.raises(LimitError, match="float32"):
        scalar.activation(dst, op("exp"), data, scale=bfloat16)
    with pytest.raises(LimitError, match="maximum"):
        scalar.activation_reduce(dst, op("exp"), data, op("maximum"), empty(8, 1))
    with pytest.raises(NotImplementedError, match="gelu"):
        scalar.activation(dst, op("gelu"), data)
    monkeypatch.setenv("NEURON_PLATFORM_TARGET_OVERRIDE", "inf2")
    with pytest.raises(LimitError, match="v2"):
        scalar.activation(dst, op("exp"), data, bias=1.0)


def test_iota() -> None:
    dst = empty(16, 3, 5)
    gpsimd.iota(dst, [[100, 3], [-2, 5]], offset=7, channel_multiplier=1000)
    lane, y, x = np.mgrid[0:16, 0:3, 0:5]
    same(dst, (7 + 1000 * lane + 100 * y - 2 * x).astype(np.float32))
    exact = empty(2, 1, dtype="int32")
    gpsimd.iota(exact, [[1, 1]], offset=2**24 + 1)
    np.testing.assert_array_equal(exact.data, 2**24 + 1)


@pytest.mark.parametrize(("name", "compare"), [("greater_equal", np.greater_equal), ("equal", np.equal)])
def test_affine_select(name: str, compare: Any) -> None:
    values = random(128, 512)
    dst = empty(128, 512)
    gpsimd.affine_select(dst, [[-1, 512]], 1, tile(values), -3.0, op(name), offset=100)
    lane, x = np.mgrid[0:128, 0:512]
    same(dst, np.where(compare(100 + lane - x, 0), values, np.float32(-3)))


def test_affine_select_onto_itself_over_two_axes() -> None:
    values = random(4, 3, 5)
    made = tile(values)
    gpsimd.affine_select(made, [[10, 3], [1, 5]], -10, made, 0.0, op("less"), offset=-2)
    lane, y, x = np.mgrid[0:4, 0:3, 0:5]
    same(made, np.where(10 * y + x - 10 * lane - 2 < 0, values, 0))


def test_tensor_partition_reduce() -> None:
    values = random(128, 3, 2)
    dst = empty(1, 3, 2)
    gpsimd.tensor_partition_reduce(dst, op("add"), tile(values))
    near(dst, values.sum(0, keepdims=True))
    with pytest.raises(LimitError, match="multiply"):
        gpsimd.tensor_partition_reduce(dst, op("multiply"), tile(values))


@pytest.mark.parametrize(
    "call",
    [
        lambda t: gpsimd.iota(t, [[1, 3]]),
        lambda t: gpsimd.affine_select(t, [[1, 3]], 1, empty(8, 3), 0.0, op("less")),
        lambda t: gpsimd.affine_select(empty(8, 3), [[1, 3]], 1, t, 0.0, op("less")),
        lambda t: gpsimd.tensor_partition_reduce(empty(1, 3), op("add"), t),
    ],
)
def test_gpsimd_does_not_reach_psum(call: Any) -> None:
    call(tile(random(8, 3)))
    with pytest.raises(LimitError):
        call(tile(random(8, 3), buffer=PSUM))


@pytest.mark.parametrize("pattern", [[[1, 4]], [[1, 3], [1, 1], [1, 1], [1, 1], [1, 1]]])
def test_a_pattern_has_four_axes_and_the_tiles_size(pattern: list[list[int]]) -> None:
    with pytest.raises(LimitError):
        gpsimd.iota(empty(8, 3), pattern)


@pytest.mark.parametrize("to", ["float32", "bfloat16", "float16"])
def test_dma_copy_casts(to: str) -> None:
    values = random(6, 40)
    dst = empty(6, 40, dtype=to)
    dma.dma_copy(dst, tile(values, buffer=HBM))
    same(dst, rounded(values, to))


def test_dma_copy_goes_element_by_element() -> None:
    values = random(3, 4, 10)
    dst = empty(6, 20)
    dma.dma_copy(dst, tile(values, buffer=HBM))
    same(dst, values.reshape(6, 20))
    dma.dma_copy(dst[0, 0], tile(values, buffer=HBM)[2, 3, 4])
    assert dst.values()[0, 0] == values[2, 3, 4]
    with pytest.raises(LimitError):
        dma.dma_copy(dst, tile(random(3, 4, 9), buffer=HBM))


@pytest.mark.parametrize("buffers", [(PSUM, SBUF), (SBUF, PSUM)])
def test_dma_does_not_reach_psum(buffers: tuple[Region, Region]) -> None:
    with pytest.raises(LimitError):
        dma.dma_copy(empty(8, 3, buffer=buffers[0]), tile(random(8, 3), buffer=buffers[1]))


@pytest.mark.parametrize("buffer", [HBM, SBUF])
@pytest.mark.parametrize(("shape", "axes"), [((7, 5), (1, 0)), ((7, 3, 5), (2, 1, 0)), ((7, 2, 3, 5), (3, 1, 2, 0))])
def test_dma_transpose(shape: tuple[int, ...], axes: tuple[int, ...], buffer: Region) -> None:
    values = random(*shape)
    wanted = rounded(values, "bfloat16").transpose(axes)
    dst = empty(*wanted.shape, dtype="bfloat16")
    dma.dma_transpose(dst, tile(values, "bfloat16", buffer))
    same(dst, wanted)


@pytest.mark.parametrize(
    ("shape", "options"), [((5, 7), {"dtype": "bfloat16"}), ((7, 5), {}), ((5, 7), {"buffer": HBM})]
)
def test_dma_transpose_refuses(shape: tuple[int, int], options: dict[str, Any]) -> None:
    with pytest.raises(LimitError):
        dma.dma_transpose(empty(*shape, **options), tile(random(7, 5), buffer=HBM))
