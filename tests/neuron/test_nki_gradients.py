"""Gradients of the `nki` backend: what attention_bwd is given, and what comes back."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import xattn


def gradients(*tensors: Tensor, sinks: Tensor | None = None, **options: Any) -> tuple[Tensor, tuple[Tensor, ...]]:
    leaves = [x.detach().requires_grad_() for x in tensors]
    wanted = leaves if sinks is None else [*leaves, sinks]
    out = xattn.attention(*leaves, sinks=sinks, backend="nki", **options)
    return out, torch.autograd.grad(out, wanted, torch.full_like(out, 2.0))


def across(x: Tensor) -> Tensor:
    """(batch, seqlen, heads, headdim) to (batch, heads, headdim, seqlen)."""
    return x.permute(0, 2, 3, 1)


def test_the_backward_has_a_layout_of_its_own(aws: Any, qkv: Any) -> None:
    made, (q, k, v) = aws(), qkv(128, 512)
    out, (dq, dk, dv) = gradients(q, k, v)
    assert [each.kernel for each in made.launches] == ["attention_cte", "attention_bwd"]
    given, named = made.last.arguments, made.last.named
    for tensor, x in zip(given[:5], (q, k, v, out, torch.full_like(q, 2.0)), strict=True):
        assert tensor.is_contiguous()
        assert torch.equal(tensor, across(x))
    assert tuple(given[5].shape) == (2, 4, 128, 1)
    assert torch.equal(given[5], torch.arange(128.0)[:, None].expand(2, 4, 128, 1))
    assert named["softmax_scale"] == 64**-0.5
    assert named["mixed_precision"] is True
    assert (named["use_causal_mask"], named["sliding_window"], named["sinks_ref"]) == (False, None, None)
    for grad, x in ((dq, q), (dk, k), (dv, v)):
        assert grad.shape == x.shape
        assert grad.dtype == x.dtype
        assert grad.eq(1).all()


def test_gradients_come_back_by_row_and_head(aws: Any, qkv: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from xattn_neuron import vendor

    aws()
    q, k, v = qkv(130)
    monkeypatch.setitem(vendor.overridden, "attention_bwd", lambda q, k, v, *rest, **named: (q + 1, k + 2, v + 3))
    _, (dq, dk, dv) = gradients(q, k, v, causal=True)
    assert torch.equal(dq, q + 1)
    assert torch.equal(dk, k + 2)
    assert torch.equal(dv, v + 3)


@pytest.mark.parametrize(("seqlen", "padded"), [(100, 128), (130, 256), (256, 256), (257, 512), (600, 1024)])
def test_causal_lengths_are_padded_to_what_the_kernel_takes(aws: Any, qkv: Any, seqlen: int, padded: int) -> None:
    """bwd-lengths: with zeros, behind the diagonal."""
    made, (q, k, v) = aws(), qkv(seqlen)
    gradients(q, k, v, causal=True)
    assert {x.shape[-1] for x in made.last.arguments[:5]} == {padded}
    assert tuple(made.last.arguments[5].shape) == (2, 4, 128, padded // 128)
    for given in made.last.arguments[:5]:
        assert given[..., seqlen:].eq(0).all()


@pytest.mark.parametrize("seqlen_k", [128, 256, 512, 1024])
def test_full_attention_pads_queries_alone(aws: Any, qkv: Any, seqlen_k: int) -> None:
    made, (q, k, v) = aws(), qkv(100, seqlen_k)
    gradients(q, k, v)
    assert made.last.arguments[0].shape[-1] == 128
    assert made.last.arguments[1].shape[-1] == seqlen_k


def test_before_0_4_the_forward_rounds_q_as_the_backward_does(aws: Any, qkv: Any) -> None:
    """bwd-scales-q-first"""
    q, k, v = qkv(128, headdim=96)
    made = aws(nki="0.3.0")
    gradients(q, k, v, causal=True)
    forward, backward = made.launches
    assert forward.named["scale"] == 1.0
    assert torch.equal(forward.arguments[0][0], (q[0, :, 0].double() * 96**-0.5).to(torch.bfloat16))
    assert torch.equal(backward.arguments[0], across(q))
    made = aws(nki="0.4.0")
    gradients(q, k, v, causal=True)
    assert made.launches[0].named["scale"] == 96**-0.5


def test_a_window(aws: Any, qkv: Any) -> None:
    made, (q, k, v) = aws(), qkv()
    gradients(q, k, v, window=(16, 0))
    assert [each.named.get("sliding_window") for each in made.launches] == [17, 17]
    assert made.last.named["use_causal_mask"] is True


def test_sinks(aws: Any, qkv: Any) -> None:
    made, (q, k, v) = aws(), qkv()
    sinks = torch.arange(4.0).bfloat16().requires_grad_()
    _, grads = gradients(q, k, v, sinks=sinks)
    assert torch.equal(made.last.named["sinks_ref"], torch.arange(4.0).expand(2, -1))
    # One of each batch row.
    assert torch.equal(grads[3], torch.full((4,), 2.0).bfloat16())


def test_rows_without_keys_have_no_gradient(aws: Any, qkv: Any) -> None:
    made, (q, k, v) = aws(), qkv(300, 128)
    out, (dq, dk, _) = gradients(q, k, v, causal=True)
    assert made.last.arguments[0].shape[-1] == 128
    assert out[:, :172].eq(0).all()
    assert dq[:, :172].eq(0).all()
    assert dq[:, 172:].eq(1).all()
    assert dk.eq(1).all()


def test_keys_without_rows_have_no_gradient(aws: Any, qkv: Any) -> None:
    _, (q, k, v) = aws(), qkv(128, 300)
    _, (_, dk, dv) = gradients(q, k, v, causal=True, align="top_left")
    for grad in (dk, dv):
        assert grad[:, :128].eq(1).all()
        assert grad[:, 128:].eq(0).all()
