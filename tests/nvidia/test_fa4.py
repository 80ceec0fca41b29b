"""`fa4` over a stand-in with FlashAttention-4's faults: right in each trap, or declined."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import support
import torch
from nvidia.calls import declined, packed, pages, qkv, right
from support import extended
from torch import Tensor
from xattn_elsewhere.nvidia import fa4

import xattn
from xattn.testing import fresh


@pytest.fixture(autouse=True)
def complete() -> Iterator[None]:
    fa4.install()
    try:
        with fresh():
            yield
    finally:
        fa4.uninstall()


def both(op: Any, *tensors: Any, **options: Any) -> list[Any]:
    return [op(*tensors, backend=name, **options) for name in ("fa4", "reference")]


SINKS = torch.tensor([0.5, -1.0, 2.0, 0.0])


@pytest.mark.parametrize(
    "options",
    [
        {"causal": True, "softcap": 2.0},
        {"window": (7, None), "return_lse": True},  # fa4-a-side-of-minus-1
        {"causal": True, "window": (7, None), "sinks": SINKS, "return_lse": True},
        {"causal": True, "align": 5},
        {"causal": True, "align": "top_left"},  # fa4-counts-from-the-bottom-right
        {"scale": -0.3, "causal": True},  # fa4-scale-0-or-less
        *extended({"scale": 0.0, "causal": True}),
    ],
    ids=support.named,
)
def test_calls_are_right(options: dict[str, Any]) -> None:
    right(*both(xattn.attention, *qkv(9, 33), **options))


def test_a_side_that_ends_before_the_diagonal_is_declined() -> None:
    """fa4-counts-from-the-bottom-right"""
    assert declined("fa4", xattn.attention, *qkv(33, 9), window=(3, None), align="top_left") == {"align"}


@pytest.mark.parametrize("sizes", [(9, 33), (33, 9)], ids=support.named)
def test_gradients_are_right(sizes: tuple[int, int]) -> None:
    """fa4-backward-of-dead-queries: 24 of 33 see no key, and hold NaN; their lse is the sink."""
    dout, dlse = torch.randn(2, sizes[0], 4, 64).bfloat16(), torch.randn(2, 4, sizes[0])
    grads = []
    for name in ("fa4", "reference"):
        q, k, v = (x.requires_grad_() for x in qkv(*sizes))
        with torch.no_grad():
            if sizes[0] > sizes[1]:
                q[:, : sizes[0] - sizes[1]] = math.nan
        sinks = SINKS.clone().requires_grad_()
        found = xattn.attention(q, k, v, causal=True, sinks=sinks, return_lse=True, backend=name)
        torch.autograd.backward(found, (dout, dlse))
        grads.append([x.grad for x in (q, k, v, sinks)])
    right(*grads)


def test_gradients_of_groups_with_another_head_size_of_values() -> None:
    """fa4-backward-of-groups"""
    q, k, v = qkv(5, 9, headdim=64, headdim_v=32)
    assert declined("fa4", xattn.attention, q.requires_grad_(), k, v) == {"headdim_v"}
    assert declined("fa4", xattn.attention, q[:, :, :2], k, v) == set()


@pytest.mark.parametrize(
    ("sizes", "grads", "codes"),
    [((40, 40), False, set()), ((40, 40), True, {"headdim", "headdim_v"}), ((32, 128), False, {"headdim_v"})],
    ids=support.named,
)
def test_head_sizes(sizes: tuple[int, int], grads: bool, codes: set[str]) -> None:
    """fa4-values-wider-than-keys, fa4-backward-of-odd-head-sizes"""
    q, k, v = qkv(3, 5, headdim=sizes[0], headdim_v=sizes[1])
    assert declined("fa4", xattn.attention, q.requires_grad_(grads), k, v) == codes


def test_a_sink_far_above_all_scores() -> None:
    """fa4-sinks-far-above-scores"""
    q, k, v = qkv(3, 5)
    right(*both(xattn.attention, q * 0 + 4, k * 0 - 4, v, sinks=SINKS, return_lse=True))


def test_gradients_of_packed_sequences() -> None:
    """fa4-loads-the-next-sequence, fa4-rows-of-no-sequence: with sinks, and gradients of lse."""
    starts, keys = (torch.tensor(ends, dtype=torch.int32) for ends in ([0, 9, 9, 12, 17], [0, 4, 6, 12, 20]))
    grads = []
    for name in ("fa4", "reference"):
        q, k, v = (x.clone() for x in packed(20, rows=22)[:3])
        for x, rows in ((q, slice(17, 22)), (q, slice(0, 5)), (k, slice(20, 22)), (v, slice(20, 22))):
            x[rows] = math.nan
        q, k, v, sinks = (x.requires_grad_() for x in (q, k, v, SINKS.clone()))
        found = xattn.varlen_attention(q, k, v, starts, keys, causal=True, sinks=sinks, return_lse=True, backend=name)
        draw = torch.Generator().manual_seed(1)
        dout, dlse = torch.randn(22, 4, 64, generator=draw).bfloat16(), torch.randn(4, 22, generator=draw)
        dout[17:], dlse[:, 17:] = 0, 0
        torch.autograd.backward(found, (dout, dlse))
        grads.append([found.lse, *(x.grad for x in (q, k, v, sinks))])
    right(*grads)


def test_a_share_of_other_keys() -> None:
    q, k, v = qkv(9, 17)
    out, lse = xattn.attention(q, k, v, return_lse=True, backend="reference")
    right(*both(xattn.attention_backward, out, q, k[:, 4:], v[:, 4:], out, lse))


@pytest.mark.extended
def test_functions_of_torch_reach_the_kernel() -> None:
    """fa4-is-not-traced"""
    q, k, v = qkv(5, 9)

    def call(q: Tensor, sinks: Tensor) -> Tensor:
        return xattn.attention(q, k, v, causal=True, sinks=sinks, backend="fa4")

    expected = xattn.attention(q, k, v, causal=True, sinks=SINKS, backend="reference")
    right(torch.compile(call, fullgraph=True, backend="eager")(q, SINKS), expected)
    right(torch.vmap(call)(torch.stack((q, q)), torch.stack((SINKS, SINKS)))[1], expected)


@pytest.mark.parametrize("queries", [None, [3, 0, 17]], ids=support.named)
def test_pages_are_right(queries: list[int] | None) -> None:
    """fa4-loads-pages-whole, fa4-rows-of-no-sequence"""
    tensors = pages(64, [100, 70, 9], queries)
    assert declined("fa4", xattn.paged_attention, *tensors) == {"stale_pages"}
    q, k, v, table, *batch = tensors
    k, v = k.nan_to_num(), v.nan_to_num()
    options: dict[str, Any] = {"unseen_finite": True, "return_lse": True, "sinks": SINKS}
    right(*both(xattn.paged_attention, torch.cat((q, q)) if queries else q, k, v, table, *batch, **options))
    right(*both(xattn.paged_attention, q, k, v, table, *batch, window=(20, 0), **options))


def test_lengths_of_dense_rows_are_declined() -> None:
    """fa4-lengths-load-what-is-behind"""
    q, k, v = qkv(3, 5)
    assert declined("fa4", xattn.attention, q, k, v, seqlens_k=torch.tensor([3, 5])) == {"seqlens_k"}


def test_single_queries_go_elsewhere() -> None:
    """fa4-one-split-on-hopper: the stand-in asserts that one split is asked for."""
    q, k, v = qkv(1, 200)
    xattn.attention(q, k, v, backend="fa4")
    assert xattn.explain(q, k, v).backend == "sdpa"


def test_a_batch_that_fits_no_grid_is_declined() -> None:
    """fa4-batches-above-65535"""
    q, k = torch.empty(70_000, 1, 4, 64).bfloat16(), torch.empty(70_000, 3, 2, 64).bfloat16()
    assert declined("fa4", xattn.attention, q, k, k) == {"batch"}


def test_it_is_passed_over_until_it_is_compiled() -> None:
    """fa4-compiles-each-kind"""
    q, k, v = qkv(5, 9)
    options: dict[str, Any] = {"window": (3, 0)}
    assert xattn.explain(q, k, v, **options).backend != "fa4"
    (candidate,) = [each for each in xattn.explain(q, k, v, **options).candidates if each.name == "fa4"]
    assert candidate.unbuilt is not None
    xattn.attention(q, k, v, backend="fa4", **options)
    with fresh():
        (candidate,) = [each for each in xattn.explain(q, k, v, **options).candidates if each.name == "fa4"]
        assert candidate.unbuilt is None
