"""Packed sequences and pages by `fa3`, over a stand-in with FlashAttention-3's faults."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from nvidia.fa3_standin import declined, packed, right, standing_in
from torch import Tensor

import xattn


@pytest.fixture(autouse=True)
def complete() -> Iterator[None]:
    with standing_in():
        yield


def test_a_nan_reaches_no_other_sequence() -> None:
    """fa3-loads-the-next-sequence: the values of another sequence, and of the rows behind the last."""
    q, k, v, starts = packed(5, 9, 3, rows=30)
    expected = xattn.varlen_attention(q, k, v, starts, backend="reference")
    for where in (7, 20):
        v[where, 0] = math.nan if where == 7 else math.inf
    k[17:], v[18:] = math.nan, math.nan
    found = xattn.varlen_attention(q, k, v, starts, backend="fa3")
    assert found[5:14, :2].isnan().all()
    for rows in (slice(0, 5), slice(14, 30)):
        right(found[rows], expected[rows])
    right(found[5:14, 2:], expected[5:14, 2:])


@pytest.mark.parametrize(
    "options", [{}, {"causal": True, "scale": -0.2}, {"window": (2, 1)}, {"softcap": 1.0}], ids=str
)
def test_packed_sequences_are_right(options: dict[str, Any]) -> None:
    """fa3-rows-of-no-sequence"""
    q, k, v, starts = packed(5, 0, 9, 3, rows=20)
    keys = torch.tensor([0, 2, 4, 4, 20], dtype=torch.int32)
    for bounds in ({}, {"max_seqlen_q": 50, "max_seqlen_k": 64}):
        found = [
            xattn.varlen_attention(q, k, v, starts, keys, return_lse=True, backend=name, **bounds, **options)  # type: ignore[call-overload]
            for name in ("fa3", "reference")
        ]
        right(*found)


def test_sizes_of_0() -> None:
    q, k, v, starts = packed(3, 2)
    for bound in (0, 4):
        for tokens in (0, 5):
            given = q[:tokens], k, v, starts * 0
            found = xattn.varlen_attention(*given, backend="fa3", max_seqlen_q=bound, max_seqlen_k=bound)
            assert torch.equal(found, torch.zeros_like(given[0]))


def test_gradients_of_packed_sequences_are_declined() -> None:
    q, k, v, starts = packed(3, 2)
    assert declined(xattn.varlen_attention, q.requires_grad_(), k, v, starts) == {"grad_qkv"}


def pages(block_size: int, lengths: list[int], queries: list[int] | None = None) -> tuple[Tensor, ...]:
    """A pool of pages, of which every slot that holds no key is NaN, and the batch. queries: one each where None."""
    draw = torch.Generator().manual_seed(0)
    columns = -(-max(lengths) // block_size)
    table = torch.randperm(len(lengths) * columns, generator=draw).view(len(lengths), columns).int()
    k, v = (torch.full((table.numel(), block_size, 2, 64), math.nan).bfloat16() for _ in range(2))
    for b, length in enumerate(lengths):
        for j in range(length):
            for cache in (k, v):
                cache[table[b, j // block_size], j % block_size] = torch.randn(2, 64, generator=draw).bfloat16()
        table[b, -(-length // block_size) :] = -1
    total = len(lengths) if queries is None else sum(queries)
    batch = (table, torch.tensor(lengths, dtype=torch.int32))
    starts = () if queries is None else (torch.tensor([0, *queries]).cumsum(0).int(),)
    return (torch.randn(total, 4, 64, generator=draw).bfloat16(), k, v, *batch, *starts)


def paged(tensors: tuple[Tensor, ...], **options: Any) -> list[Any]:
    return [xattn.paged_attention(*tensors, return_lse=True, backend=name, **options) for name in ("fa3", "reference")]


@pytest.mark.parametrize("block_size", [1, 16, 64])
@pytest.mark.parametrize("queries", [None, [3, 0, 17]], ids=str)
def test_pages_are_right(block_size: int, queries: list[int] | None) -> None:
    right(*paged(pages(block_size, [33, 70, 9], queries)))
    right(*paged(pages(block_size, [33, 70, 9], queries), causal=False, softcap=2.0))


def test_rows_behind_the_last_sequence() -> None:
    """fa3-rows-of-no-sequence"""
    q, *others = pages(16, [33, 5], [3, 4])
    right(*paged((torch.cat((q, q)), *others)))


def test_pages_that_are_loaded_whole() -> None:
    """fa3-loads-pages-whole: not where they may hold NaN."""
    tensors = pages(64, [100, 7], [70, 3])
    assert declined(xattn.paged_attention, *tensors) == {"stale_pages"}
    assert declined(xattn.paged_attention, *pages(32, [100, 7], [70, 3])) == set()
    q, k, v, *batch = tensors
    right(*paged((q, k.nan_to_num(), v.nan_to_num(), *batch), unseen_finite=True))


def test_pages_before_a_window_are_not_looked_up() -> None:
    """fa3-loads-keys-before-a-window"""
    tensors = pages(16, [200, 9])
    q, k, v, table, lengths = tensors
    assert declined(xattn.paged_attention, *tensors, window=(20, 0)) == {"stale_pages"}
    table[0, :11] = -1
    right(*paged((q, k.nan_to_num(), v.nan_to_num(), table, lengths), window=(20, 0), unseen_finite=True))


def test_a_table_is_made_once_a_step() -> None:
    q, k, v, table, lengths = pages(16, [200, 9])
    step = xattn.PagedBatch(table, lengths)
    options: dict[str, Any] = {"window": (20, 0), "unseen_finite": True, "backend": "fa3"}
    xattn.paged_attention(q, k, v, step, **options)
    assert step._derived
    (made,) = step._derived.values()
    xattn.paged_attention(q, k, v, step, **options)
    assert [made] == list(step._derived.values())


@pytest.mark.extended
def test_a_graph_of_torch_compile_takes_another_backend() -> None:
    call = torch.compile(lambda *tensors: xattn.varlen_attention(*tensors), fullgraph=True, backend="eager")
    tensors = packed(5, 9)
    right(call(*tensors, tensors[3]), xattn.varlen_attention(*tensors, backend="reference"))
