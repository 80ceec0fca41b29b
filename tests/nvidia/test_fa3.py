"""`fa3` over a stand-in with FlashAttention-3's faults: right in each trap, or declined."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import xattn_nvidia.fa3.installation
from nvidia.calls import declined, packed, qkv, right
from nvidia.fa3_standin import built_without, standing_in
from torch import Tensor
from xattn_nvidia.fa3 import vendor

import xattn


@pytest.fixture(autouse=True)
def complete() -> Iterator[None]:
    with standing_in():
        yield


def both(*tensors: Tensor, **options: Any) -> tuple[Any, Any]:
    return tuple(xattn.attention(*tensors, backend=name, **options) for name in ("fa3", "reference"))


@pytest.mark.parametrize(
    "options",
    [
        {"causal": True},
        {"window": (7, 2), "return_lse": True},
        {"causal": True, "softcap": 2.0},
        {"causal": True, "align": 5},
        {"causal": True, "align": "top_left"},  # fa3-counts-from-the-bottom-right
        {"window": (4, None), "align": "top_left"},
        {"scale": -0.3, "causal": True},  # fa3-scale-0-or-less
        {"scale": 0.0, "causal": True},
    ],
    ids=str,
)
def test_calls_are_right(options: dict[str, Any]) -> None:
    right(*both(*qkv(9, 33), **options))


def test_a_side_that_ends_before_the_diagonal_is_declined() -> None:
    """fa3-counts-from-the-bottom-right"""
    assert declined("fa3", xattn.attention, *qkv(9, 33), window=(None, 2), align="top_left") == set()
    assert declined("fa3", xattn.attention, *qkv(33, 9), window=(3, None), align="top_left") == {"align"}


def test_misaligned_rows_are_copied() -> None:
    """fa3-misaligned-rows"""
    q, k, v = qkv(5, 9)
    wide = torch.zeros(*q.shape[:3], 65, dtype=q.dtype)
    wide[..., 1:] = q
    right(*both(wide[..., 1:], k[:, :, :1].expand(-1, -1, 2, -1), v))


def test_no_key_at_all() -> None:
    """fa3-lse-of-no-keys: a window that shows none leaves none to hand over."""
    out, lse = xattn.attention(*qkv(3, 9), window=(0, 0), align=20, return_lse=True, backend="reference")
    assert declined("fa3", xattn.attention, *qkv(3, 9), window=(0, 0), align=20)
    q, k, v = qkv(3, 9)
    found = torch.ops.xattn_nvidia.fa3_forward(q, k[:, :0], v[:, :0], None, 1.0, None, None, None, 0, False)
    assert torch.equal(found[0], out)
    assert torch.equal(found[1], lse)


@pytest.mark.parametrize("sizes", [(9, 33), (33, 9)], ids=str)
@pytest.mark.parametrize("options", [{"causal": True}, {"window": (5, 3), "scale": -0.2}], ids=str)
def test_gradients_are_right(sizes: tuple[int, int], options: dict[str, Any]) -> None:
    """fa3-backward-of-dead-queries: 24 of 33 see no key, and hold NaN."""
    dout = torch.randn(2, sizes[0], 4, 64).bfloat16()
    grads = []
    for name in ("fa3", "reference"):
        given = [x.requires_grad_() for x in qkv(*sizes)]
        with torch.no_grad():
            if sizes[0] > sizes[1]:
                given[0][:, : sizes[0] - sizes[1] - 5] = math.nan
        xattn.attention(*given, backend=name, **options).backward(dout)
        grads.append([x.grad for x in given])
    right(*grads)


def test_lse_is_made_contiguous() -> None:
    """fa3-backward-reads-lse-without-strides"""
    q, k, v = qkv(9, 17)
    out, lse = xattn.attention(q, k, v, return_lse=True, backend="reference")
    strided = lse.transpose(1, 2).contiguous().transpose(1, 2)
    found = [
        xattn.attention_backward(out, q, k, v, out, given, backend=name)
        for name, given in (("fa3", strided), ("reference", lse))
    ]
    right(*found)


def test_functions_of_torch_reach_the_kernel() -> None:
    q, k, v = qkv(5, 9)

    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return xattn.attention(q, k, v, causal=True, backend="fa3")

    expected = xattn.attention(q, k, v, causal=True, backend="reference")
    right(torch.vmap(call)(*(torch.stack((x, x)) for x in (q, k, v)))[1], expected)
    right(torch.compile(call, fullgraph=True, backend="eager")(q, k, v), expected)
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    torch.compile(call, fullgraph=True, backend="aot_eager")(*leaves).sum().backward()
    right(leaves[0].grad, torch.func.grad(lambda q: call(q, k, v).sum())(q))
    with pytest.raises(NotImplementedError, match="second derivative"):
        torch.autograd.grad(call(*leaves).sum(), leaves, create_graph=True)[0].sum().backward()


@pytest.mark.parametrize(
    ("flag", "options", "codes"),
    [
        ("BACKWARD", {}, {"grad_qkv"}),
        ("LOCAL", {"window": (3, 0)}, {"window"}),
        ("SOFTCAP", {"softcap": 2.0}, {"softcap"}),
        ("HDIM64", {}, set()),
        ("HDIM256", {}, set()),
    ],
)
def test_what_a_build_lacks_is_declined(flag: str, options: dict[str, Any], codes: set[str]) -> None:
    """fa3-built-without"""
    xattn_nvidia.fa3.installation.overridden = built_without(flag)
    q, k, v = qkv(5, 9)
    assert declined("fa3", xattn.attention, q.requires_grad_(flag == "BACKWARD"), k, v, **options) == codes
    assert ("headdim" in declined("fa3", xattn.attention, *qkv(5, 9, headdim=256))) == (flag == "HDIM256")
    assert "dtype" not in declined("fa3", xattn.attention, *(x.half() for x in qkv(5, 9)))


def test_a_build_without_float16_and_one_without_packed_sequences() -> None:
    """fa3-built-without"""
    xattn_nvidia.fa3.installation.overridden = built_without("FP16", "VARLEN", "SPLIT")
    assert declined("fa3", xattn.attention, *(x.half() for x in qkv(5, 9))) == {"dtype"}
    assert declined("fa3", xattn.varlen_attention, *packed(3, 4)) == {"op"}


@pytest.mark.parametrize(
    ("headdim", "headdim_v", "codes"),
    [(64, 128, set()), (32, 48, set()), (192, 128, set()), (128, 64, {"headdim_v"}), (192, 64, {"headdim_v"})],
)
def test_pairs_of_head_sizes(headdim: int, headdim_v: int, codes: set[str]) -> None:
    """fa3-headdim-pairs"""
    tensors = qkv(3, 5, headdim=headdim, headdim_v=headdim_v)
    assert declined("fa3", xattn.attention, *tensors) == codes
    if not codes:
        right(*both(*tensors))


def test_what_is_no_feature_of_the_kernel() -> None:
    """fa3-lengths-load-what-is-behind"""
    q, k, v = qkv(3, 5)
    lengths = torch.tensor([3, 5], dtype=torch.int32)
    assert declined("fa3", xattn.attention, q, k, v, seqlens_k=lengths, sinks=torch.zeros(4)) == {"seqlens_k", "sinks"}


@pytest.mark.parametrize(("headdim", "codes"), [(192, set()), (256, {"deterministic"})])
def test_deterministic_gradients(headdim: int, codes: set[str]) -> None:
    """fa3-deterministic-to-192"""
    q, k, v = qkv(3, 5, headdim=headdim)
    assert declined("fa3", xattn.attention, q.requires_grad_(), k, v, deterministic=True) == codes


def test_splits_are_left_to_the_kernel_where_no_bits_are_promised(monkeypatch: pytest.MonkeyPatch) -> None:
    """fa3-splits-follow-the-batch, fa3-splits-take-memory"""
    seen: list[int] = []
    forward = vendor.forward

    def watched(*args: Any, **named: Any) -> Any:
        seen.append(named["splits"])
        return forward(*args, **named)

    monkeypatch.setattr(vendor, "forward", watched)
    q, k, v = qkv(3, 5)
    for options in ({}, {"deterministic": True}):
        xattn.attention(q, k, v, backend="fa3", **options)  # type: ignore[call-overload]
    xattn.attention(q.requires_grad_(), k, v, backend="fa3")
    for tensors in (packed(3, 4), packed(600, 3)):
        xattn.varlen_attention(*tensors, backend="fa3")
    assert seen == [0, 1, 1, 0, 1]


def test_the_name_of_a_kernel_says_whether_it_splits_the_keys() -> None:
    """So that a fingerprint is another."""
    q, k, v = qkv(3, 5)
    for op, tensors in ((xattn.attention, (q, k, v)), (xattn.varlen_attention, packed(3, 4))):
        names = [xattn.explain(op, *tensors, deterministic=asked, backend="fa3").kernel for asked in (False, True)]
        assert [", keys not split (" in str(name) for name in names] == [False, True]


def test_auto_takes_it_where_it_is_faster() -> None:
    q, k, v = qkv(3, 5)
    assert xattn.explain(q, k, v).backend == "fa3"
    assert xattn.explain(q[:, :1], k, v).backend == "sdpa"
    assert xattn.explain(q[:, :1], k, v, softcap=3.0).backend == "fa3"
    leaf = q.clone().requires_grad_()
    assert xattn.explain(leaf, k, v).backend == "sdpa"
    assert xattn.explain(leaf, k, v, window=(1, 0)).backend == "fa3"
