"""`cudnn` over a stand-in with cuDNN's faults: right in each trap, or declined."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from nvidia.calls import declined, packed, pages, qkv, right
from support import extended
from xattn_elsewhere.nvidia import cudnn

import xattn
from xattn.testing import fresh


@pytest.fixture(autouse=True)
def complete() -> Iterator[None]:
    cudnn.install()
    try:
        with fresh():
            yield
    finally:
        cudnn.uninstall()


def both(op: Any, *tensors: Any, **options: Any) -> list[Any]:
    return [op(*tensors, backend=name, **options) for name in ("cudnn", "reference")]


SINKS = torch.tensor([0.5, -1.0, 2.0, 0.0])


@pytest.mark.parametrize(
    "options",
    [
        {"window": (7, 2), "return_lse": True},  # cudnn-left-bound-is-exclusive
        {"window": (0, 0)},
        {"causal": True, "sinks": SINKS, "return_lse": True},
        {"causal": True, "align": 5},
        {"window": (4, None), "align": "top_left"},
        {"scale": -0.3, "causal": True},  # cudnn-scale-0-or-less
        *extended({"causal": True}, {"causal": True, "align": "top_left"}, {"window": (None, 3)}),
    ],
    ids=str,
)
def test_calls_are_right(options: dict[str, Any]) -> None:
    right(*both(xattn.attention, *qkv(9, 33), **options))


@pytest.mark.parametrize("options", [{"causal": True, "return_lse": True}, {"causal": True, "sinks": SINKS}], ids=str)
def test_more_queries_than_keys(options: dict[str, Any]) -> None:
    """cudnn-windows-of-more-queries"""
    right(*both(xattn.attention, *qkv(33, 9), **options))
    assert declined("cudnn", xattn.attention, *qkv(33, 9), window=(3, 2)) == {"align"}
    assert declined("cudnn", xattn.attention, *qkv(33, 9), window=(3, 0)) == set()


def test_one_query_with_sinks() -> None:
    """cudnn-no-sinks-at-one-query"""
    q, k, v = qkv(1, 9)
    right(*both(xattn.attention, q, k, v, sinks=SINKS, return_lse=True))
    q, k, v = qkv(130, 9)
    assert declined("cudnn", xattn.attention, q.requires_grad_(), k, v, sinks=SINKS) == {"grad_qkv"}


def test_misaligned_rows_are_copied() -> None:
    """cudnn-misaligned-rows"""
    q, k, v = qkv(5, 9)
    wide = torch.zeros(*q.shape[:3], 65, dtype=q.dtype)
    wide[..., 1:] = q
    right(*both(xattn.attention, wide[..., 1:], k[:, :, :1].expand(-1, -1, 2, -1), v))


@pytest.mark.parametrize("sizes", [(130, 150), (150, 130)], ids=str)
def test_gradients_are_right(sizes: tuple[int, int]) -> None:
    draw = torch.Generator().manual_seed(1)
    dout = torch.randn(2, sizes[0], 4, 64, generator=draw).bfloat16()
    grads = []
    for name in ("cudnn", "reference"):
        q, k, v = (x.requires_grad_() for x in qkv(*sizes))
        xattn.attention(q, k, v, causal=True, backend=name).backward(dout)
        grads.append([x.grad for x in (q, k, v)])
    right(*grads)


@pytest.mark.parametrize("sizes", [(100, 150), (192, 200), (200, 320)], ids=str)
def test_gradients_that_cudnn_gets_wrong_are_declined(sizes: tuple[int, int]) -> None:
    """cudnn-gradients-of-few-queries, cudnn-gradients-64-past-128"""
    q, k, v = qkv(*sizes)
    assert declined("cudnn", xattn.attention, q.requires_grad_(), k, v) == {"seqlen_q"}


def test_packed_sequences() -> None:
    """cudnn-loads-behind-lengths, cudnn-plans-each-shape"""
    starts, keys = (torch.tensor(ends, dtype=torch.int32) for ends in ([0, 9, 9, 12, 17], [0, 4, 6, 12, 20]))
    q, k, v = packed(20, rows=22)[:3]
    for x, rows in ((q, slice(17, 22)), (q, slice(0, 5)), (k, slice(20, 22)), (v, slice(20, 22))):
        x[rows] = math.nan
    right(*both(xattn.varlen_attention, q, k, v, starts, keys, window=(4, 0), return_lse=True))
    v[5, 0], v[21] = math.nan, math.inf
    found = xattn.varlen_attention(q, k, v, starts, keys, backend="cudnn")
    assert found[5:].isfinite().all()
    assert declined("cudnn", xattn.varlen_attention, q.requires_grad_(), k, v, starts, keys) == {"grad_qkv"}


def test_lse_has_no_gradient() -> None:
    """cudnn-lse-has-no-gradient"""
    q, k, v = qkv(130, 5)
    assert declined("cudnn", xattn.attention, q.requires_grad_(), k, v, return_lse=True) == {"grad_lse"}


@pytest.mark.parametrize("window", [None, (20, 0)], ids=str)
def test_pages_are_right(window: tuple[int, int] | None) -> None:
    """cudnn-lengths-of-0, cudnn-looks-pages-up-past-the-end, cudnn-loads-behind-lengths"""
    q, k, v, table, lengths = pages(16, [100, 70, 9])
    assert declined("cudnn", xattn.paged_attention, q, k, v, table, lengths) == {"stale_pages"}
    k, v = k.nan_to_num(), v.nan_to_num()
    lengths[2], table[2] = 0, -1
    options: dict[str, Any] = {"unseen_finite": True, "return_lse": True, "window": window}
    right(*both(xattn.paged_attention, q, k, v, table, lengths, **options))
    right(*both(xattn.paged_attention, q, k, v, table, lengths, sinks=SINKS, **options))


def test_what_pages_it_does_not_serve() -> None:
    """cudnn-pages-of-powers-of-two"""
    options: dict[str, Any] = {"unseen_finite": True}
    assert declined("cudnn", xattn.paged_attention, *pages(12, [33, 70]), **options) == {"block_size"}
    assert declined("cudnn", xattn.paged_attention, *pages(16, [33, 70], [2, 3]), **options) == {"cu_seqlens_q"}


def test_no_bits_are_promised() -> None:
    """cudnn-adds-in-no-fixed-order"""
    assert declined("cudnn", xattn.attention, *qkv(1, 5), deterministic=True) == {"deterministic"}


def test_auto_does_not_wait_for_plans_of_each_length() -> None:
    """cudnn-plans-each-shape"""
    q, k, v = qkv(130, 150)
    assert xattn.explain(q, k, v, window=(9, 0)).backend == "sdpa"
    assert xattn.explain(q.requires_grad_(), k, v, window=(9, 0)).backend == "cudnn"


def test_lengths_of_dense_rows_are_declined() -> None:
    """cudnn-loads-behind-lengths"""
    q, k, v = qkv(3, 5)
    assert declined("cudnn", xattn.attention, q, k, v, seqlens_k=torch.tensor([3, 5])) == {"seqlens_k"}
