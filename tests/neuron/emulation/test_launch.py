"""@nki.jit: torch tensors in and out, grids, and what programs share."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from xattn_elsewhere.nki.emulation import launch
from xattn_elsewhere.nki.emulation.isa import dma, vector
from xattn_elsewhere.nki.emulation.language import jit, ndarray, num_programs, program_id, program_ndim
from xattn_elsewhere.nki.emulation.neuronxcc import language as legacy
from xattn_elsewhere.nki.emulation.operators import OPERATORS
from xattn_elsewhere.nki.emulation.tensor import LimitError, Region


@pytest.fixture(autouse=True)
def program() -> None:
    """In place of the one that the other tests run in: a kernel starts its own."""
    launch._running.programs.clear()


@jit
def twice(x: Any, factor: float = 2.0) -> Any:
    out = ndarray(x.shape, x.dtype, Region.shared_hbm)
    on_chip = ndarray(x.shape, x.dtype)
    dma.dma_copy(on_chip, x)
    vector.tensor_scalar(on_chip, on_chip, OPERATORS["multiply"], factor)
    dma.dma_copy(out, on_chip)
    return out


def copied_by_rows(x: Any) -> Any:
    """Each program copies its rows."""
    out = ndarray(x.shape, x.dtype, Region.shared_hbm)
    count = ndarray((1, 2), "int32", Region.shared_hbm)
    share = x.shape[0] // (num_programs(0) if program_ndim() else 1)
    first = program_id(0) * share if program_ndim() else 0
    on_chip = ndarray((share, x.shape[1]), x.dtype)
    dma.dma_copy(on_chip, x[first : first + share])
    dma.dma_copy(out[first : first + share], on_chip)
    counter = ndarray((1, 1), "int32")
    vector.memset(counter, share)
    dma.dma_copy(count[0:1, 0:1], counter)
    return out, [count]


rows = jit(mode="trace")(copied_by_rows)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int32, torch.uint8])
def test_torch_tensors_go_in_and_out(dtype: torch.dtype) -> None:
    given = torch.arange(12).reshape(3, 4).to(dtype)
    for x in (given, given.mT.contiguous().mT):
        got = twice(x)
        assert got.dtype == dtype
        torch.testing.assert_close(got, given * 2, rtol=0, atol=0)
    torch.testing.assert_close(twice(given, factor=3.0), given * 3, rtol=0, atol=0)
    assert twice.__name__ == "twice"


def test_an_access_pattern_counts_elements_of_an_input_in_any_layout() -> None:
    @jit
    def second_row(x: Any) -> Any:
        out = ndarray((1, 4), x.dtype, Region.shared_hbm)
        dma.dma_copy(out, x.ap([[1, 4]], offset=4))
        return out

    x = torch.randn(4, 3).mT
    torch.testing.assert_close(second_row(x), x[1:2], rtol=0, atol=0)


@pytest.mark.parametrize("grid", [None, 1, 2, (2,)])
def test_programs_of_a_grid_fill_one_output(grid: Any) -> None:
    x = torch.randn(8, 3)
    out, (count,) = rows(x) if grid is None else rows[grid](x)
    torch.testing.assert_close(out, x, rtol=0, atol=0)
    assert count[0, 0] == (8 if grid in (None, 1) else 4)
    # What no program wrote.
    assert count[0, 1] == torch.iinfo(torch.int32).max


@pytest.mark.parametrize("grid", [3, 0, (1, 2), (2, 2)])
def test_a_grid_is_of_one_or_two_cores(grid: Any) -> None:
    with pytest.raises(LimitError, match="1 or 2"):
        rows[grid](torch.randn(8, 3))


def test_legacy_grids_have_any_number_of_programs() -> None:
    @legacy.jit
    def ids() -> Any:
        out = legacy.ndarray((3, 2, 2), "float32", buffer=Region.shared_hbm)
        i, j = program_id(0), program_id(1)
        for axis, value in enumerate((i, j)):
            legacy.store(out[i, j, axis : axis + 1], legacy.full((1, 1), value, "float32"))
        assert (program_ndim(), legacy.num_programs(0), legacy.num_programs(1)) == (2, 3, 2)
        return out

    wanted = torch.stack(torch.meshgrid(torch.arange(3.0), torch.arange(2.0), indexing="ij"), -1)
    torch.testing.assert_close(ids[3, 2](), wanted)
    with pytest.raises(LimitError, match="no programs"):
        ids[3, 0]()


def test_a_kernel_calls_another_as_a_part_of_it() -> None:
    part = jit(lambda x: (program_ndim(), x))

    @jit
    def whole(x: Any) -> Any:
        ndim, inner = part(x)
        assert inner is x
        return twice(x), ndim

    out, ndim = whole[2](torch.ones(2, 2))
    assert (out == 2).all()
    assert ndim == 1


def test_kernels_do_not_write_to_their_input() -> None:
    @jit
    def writes(x: Any) -> None:
        dma.dma_copy(x, ndarray(x.shape, x.dtype))

    with pytest.raises(ValueError, match="read-only"):
        writes(torch.zeros(2, 2))


@pytest.mark.parametrize("region", [Region.sbuf, Region.hbm, Region.private_hbm])
def test_an_output_is_in_shared_hbm(region: Region) -> None:
    with pytest.raises(LimitError, match="shared_hbm"):
        jit(lambda: ndarray((2, 2), "float32", region))()


def test_programs_allocate_the_same_outputs() -> None:
    @jit
    def other() -> Any:
        return ndarray((2, 2 + program_id(0)), "float32", Region.shared_hbm)

    with pytest.raises(LimitError, match="other shared tensors"):
        other[2]()


def test_a_type_that_nki_does_not_have_is_refused() -> None:
    with pytest.raises(LimitError, match="int64"):
        twice(torch.zeros(2, 2, dtype=torch.int64))


def test_the_language_is_for_kernels() -> None:
    with pytest.raises(RuntimeError, match="inside of a kernel"):
        ndarray((2, 2), "float32")


def test_a_kernel_that_fails_leaves_none_running() -> None:
    with pytest.raises(ZeroDivisionError):
        jit(lambda: 1 // 0)()
    assert not launch._running.programs
