"""Packed sequences and pages by `fa3`, over a stand-in with FlashAttention-3's faults."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from nvidia.calls import declined, packed, pages, right
from nvidia.fa3_standin import standing_in
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


def test_gradients_of_packed_sequences() -> None:
    """fa3-loads-the-next-sequence: of rows that hold NaN, as queries that see no key may, nothing reaches another."""
    starts, keys = (torch.tensor(ends, dtype=torch.int32) for ends in ([0, 9, 9, 12, 17], [0, 4, 6, 12, 20]))
    found = []
    for name in ("fa3", "reference"):
        q, k, v = (x.clone() for x in packed(20, rows=22)[:3])
        for x, rows in ((q, slice(17, 22)), (q, slice(0, 5)), (k, slice(20, 22)), (v, slice(20, 22))):
            x[rows] = math.nan
        leaves = [x.requires_grad_() for x in (q, k, v)]
        dout = torch.full((22, 4, 64), math.nan if name == "fa3" else 0.0).bfloat16()
        dout[:17] = torch.randn(17, 4, 64, generator=torch.Generator().manual_seed(1))
        xattn.varlen_attention(q, k, v, starts, keys, causal=True, backend=name).backward(dout)
        found.append([x.grad for x in leaves])
    right(*found)


@pytest.mark.parametrize("where", ["q", "k", "v", "dout"])
def test_a_nan_reaches_the_gradients_of_its_own_sequence_alone(where: str) -> None:
    """fa3-loads-the-next-sequence"""
    q, k, v, starts = packed(5, 9, 3)
    dout = torch.ones_like(q)
    dict(zip(("q", "k", "v", "dout"), (q, k, v, dout), strict=True))[where][7, 0] = math.nan
    leaves = [x.requires_grad_() for x in (q, k, v)]
    xattn.varlen_attention(q, k, v, starts, backend="fa3").backward(dout)
    for x in leaves:
        assert x.grad is not None
        assert x.grad[:5].isfinite().all()
        assert x.grad[14:].isfinite().all()
    assert k.grad is not None
    assert k.grad[5:14, 0].isnan().all()


def paged(tensors: tuple[Tensor, ...], **options: Any) -> list[Any]:
    return [xattn.paged_attention(*tensors, return_lse=True, backend=name, **options) for name in ("fa3", "reference")]


def test_pages_of_wider_values_are_declined() -> None:
    """fa3-pages-of-wider-values"""
    q, k, v, *batch = pages(16, [33, 5])
    assert declined("fa3", xattn.paged_attention, q, k, torch.cat((v, v), 3), *batch) == {"headdim_v"}


@pytest.mark.extended
@pytest.mark.parametrize("queries", [None, [3, 4]], ids=str)
def test_torch_compile_has_pages_as_an_operator(queries: list[int] | None) -> None:
    tensors = pages(16, [33, 5], queries)

    def call(*tensors: Tensor) -> Tensor:
        return xattn.paged_attention(*tensors, max_seqlen_q=4, max_seqlen_k=64, backend="fa3")

    right(torch.compile(call, fullgraph=True, backend="aot_eager")(*tensors), paged(tensors)[1][0])


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
    assert declined("fa3", xattn.paged_attention, *tensors) == {"stale_pages"}
    assert declined("fa3", xattn.paged_attention, *pages(32, [100, 7], [70, 3])) == set()
    q, k, v, *batch = tensors
    right(*paged((q, k.nan_to_num(), v.nan_to_num(), *batch), unseen_finite=True))


def test_pages_before_a_window_are_not_looked_up() -> None:
    """fa3-loads-keys-before-a-window"""
    tensors = pages(16, [200, 9])
    q, k, v, table, lengths = tensors
    assert declined("fa3", xattn.paged_attention, *tensors, window=(20, 0)) == {"stale_pages"}
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
def test_torch_compile_has_it_as_an_operator() -> None:
    q, k, v, starts = packed(5, 9)

    def call(*tensors: Tensor) -> Tensor:
        return xattn.varlen_attention(*tensors, max_seqlen_q=9, max_seqlen_k=9, backend="fa3")

    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    right(compiled(q, k, v, starts), xattn.varlen_attention(q, k, v, starts, backend="reference"))
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    compiled(*leaves, starts).sum().backward()
    right(leaves[1].grad, torch.func.grad(lambda k: call(q, k, v, starts).sum())(k))
