"""sdpa's paged_attention on the CPU: which way a step takes, and that each is the reference's answer."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from xattn_sdpa.paged_attention import decode
from xattn_sdpa.paged_attention.decode import Pool
from xattn_sdpa.paged_attention.store import Store

import xattn
from xattn.plugin.storage import Lists


def step(lengths: list[int], block: int, dtype: torch.dtype = torch.float32, spare: int = 0) -> tuple[Tensor, ...]:
    torch.manual_seed(0)
    counts = [-(-length // block) for length in lengths]
    caches = [torch.randn(sum(counts) + spare, block, 2, 64).to(dtype) for _ in range(2)]
    table = torch.full((len(lengths), max(counts)), -1, dtype=torch.int32)
    for row, pages in zip(table, torch.randperm(sum(counts)).split(counts), strict=True):
        row[: len(pages)] = pages
    for cache in caches:
        for row, length, count in zip(table, lengths, counts, strict=True):
            if length % block:
                cache[row[count - 1], length % block :] = float("nan")
    return torch.randn(len(lengths), 4, 64).to(dtype), *caches, table, torch.tensor(lengths, dtype=torch.int32)


def way(given: tuple[Tensor, ...]) -> decode.Way:
    _, k_cache, _, table, lengths = given
    lists = Lists(list(range(len(lengths) + 1)), lengths.tolist(), table.tolist())
    return decode.way(lists, Store(k_cache, None, k_cache.dtype))


SMALL, LONG = [64, 3, 17, 1], [512, 1024, 1100, 3, 2048]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("block", [1, 16, 64, 100, 600])
@pytest.mark.parametrize("lengths", [SMALL, LONG, [600] * 3, [12_000, 5]], ids=str)
def test_every_way_is_the_references_answer(lengths: list[int], block: int, dtype: torch.dtype) -> None:
    given = step(lengths, block, dtype)
    sinks = torch.linspace(-1, 1, 4)
    got = xattn.paged_attention(*given, sinks=sinks, return_lse=True, backend="sdpa")
    want = xattn.paged_attention(*given, sinks=sinks, return_lse=True, backend="reference")
    rtol, atol = (2e-2, 1e-2) if dtype == torch.bfloat16 else (1e-4, 1e-5)
    torch.testing.assert_close(got.out, want.out, rtol=rtol, atol=atol)
    torch.testing.assert_close(got.lse, want.lse, rtol=rtol, atol=atol)


def test_the_pool_is_for_wide_pages_of_a_pool_in_use() -> None:
    assert isinstance(way(step([640] * 4, 64)), Pool)
    assert isinstance(way(step([650] * 4, 64)), Pool)  # with tails
    assert not isinstance(way(step([640] * 4, 16)), Pool)
    assert not isinstance(way(step([640] * 9, 64)), Pool)
    assert not isinstance(way(step([640] * 4, 64, spare=20)), Pool)
    assert not isinstance(way(step([640] * 4, 64, torch.bfloat16)), Pool)
    q, k_cache, v_cache, table, lengths = step([640] * 4, 64)
    table[1, 0] = table[0, 0]
    assert not isinstance(way((q, k_cache, v_cache, table, lengths)), Pool)


def test_what_is_small_is_one_call_and_what_is_not_is_gathered_by_512_keys() -> None:
    small = way(step(SMALL, 16))
    assert not isinstance(small, Pool)
    assert [(part.block, part.keys) for part in small] == [(0, 64)]
    long = way(step(LONG, 16))
    assert not isinstance(long, Pool)
    assert [(part.block, part.keys) for part in long] == [
        (0, 512), (0, 3), (1, 512), (2, 512), (2, 76), (3, 512),
    ]  # fmt: skip


def test_no_more_than_two_megabytes_are_gathered_at_once() -> None:
    q, k_cache, *_ = given = step([2048] * 16, 16)
    parts = way(given)
    assert not isinstance(parts, Pool)
    page = k_cache[0].numel() * k_cache.itemsize
    assert max(len(part.pages) for part in parts) * page == 2**21
    assert len(q) == 16


def test_a_compiled_step_is_one_graph() -> None:
    given = step(LONG, 16)
    got = torch.compile(xattn.paged_attention, fullgraph=True, backend="eager")(*given, backend="sdpa")
    assert torch.equal(got, xattn.paged_attention(*given, backend="sdpa"))
