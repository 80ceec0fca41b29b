"""Gradients of aiter's MHA as users take them, and under torch.compile, against `reference` in float64."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from xattn_rocm.aiter_triton.attention.mha import MODULES
from xattn_rocm.installation import Installation, installation

import xattn

CALLS: dict[str, dict[str, Any]] = {"full": {}, "causal": {"causal": True}}


def leaves(seqlen_q: int = 70, seqlen_k: int = 90, headdim: int = 32) -> list[Tensor]:
    torch.manual_seed(headdim)
    shapes = ((seqlen_q, 4), (seqlen_k, 2), (seqlen_k, 2))
    return [torch.randn(2, seqlen, nheads, headdim, requires_grad=True) for seqlen, nheads in shapes]


def gradients(loss: Callable[[Tensor], Tensor], inputs: list[Tensor], **options: Any) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss(xattn.attention(*inputs, **options)), inputs)


LOSSES: dict[str, Callable[[Tensor], Tensor]] = {
    # Its gradient has strides of 0: releases before 0.1.14 read it with out's (triton-backward-strides).
    "sum": lambda out: out.sum(),
    "transposed": lambda out: (out.transpose(1, 2) * torch.linspace(-1, 1, out.shape[1]).view(1, 1, -1, 1)).sum(),
    "squares": lambda out: out.square().sum(),
}


@pytest.mark.parametrize("options", CALLS.values(), ids=list(CALLS))
@pytest.mark.parametrize("loss", LOSSES.values(), ids=list(LOSSES))
def test_gradients_of_out_come_in_any_layout(loss: Callable[[Tensor], Tensor], options: dict[str, Any]) -> None:
    inputs = leaves()
    wide = [x.detach().double().requires_grad_() for x in inputs]
    got = gradients(loss, inputs, backend="aiter-triton", **options)
    want = gradients(loss, wide, backend="reference", **options)
    for ours, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-4, atol=1e-4)


def test_what_lies_past_the_last_key_reaches_no_gradient() -> None:
    """triton-backward-unmasked: k and v cut out of memory full of NaN, in sizes that no tile divides."""
    inputs = leaves(45, 77)
    want = gradients(LOSSES["squares"], inputs, backend="aiter-triton")
    cut = []
    for x in inputs:
        larger = torch.full((4, x.shape[1] + 130, x.shape[2], x.shape[3]), float("nan"))
        larger[1:3, 65:-65] = x.detach()
        cut.append(larger[1:3, 65:-65].requires_grad_())
    got = gradients(LOSSES["squares"], cut, backend="aiter-triton")
    for ours, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_the_switch_to_the_fused_backward_changes_nothing() -> None:
    installed = installation()
    assert isinstance(installed, Installation)
    module = importlib.import_module(MODULES[installed.layout])
    inputs = leaves()
    want = gradients(LOSSES["squares"], inputs, backend="aiter-triton", causal=True)
    module.mha_set_use_fused_bwd_kernel(True)
    try:
        got = gradients(LOSSES["squares"], inputs, backend="aiter-triton", causal=True)
    finally:
        module.mha_set_use_fused_bwd_kernel(False)
    for ours, theirs in zip(got, want, strict=True):
        assert torch.equal(ours, theirs)


COMPILED = {**CALLS, "softcap": {"causal": True, "softcap": 5.0}, "lse": {"causal": True, "return_lse": True}}


@pytest.mark.parametrize("options", COMPILED.values(), ids=list(COMPILED))
def test_compiled_forward(options: dict[str, Any]) -> None:
    def call(q: Tensor, k: Tensor, v: Tensor) -> xattn.AttentionOutput | Tensor:
        returned: xattn.AttentionOutput | Tensor = xattn.attention(q * 1.0, k, v, backend="aiter-triton", **options)
        return returned

    compiled = torch.compile(call, backend="aot_eager", fullgraph=True)
    for seqlen in (33, 48, 70):
        tensors = [x.detach().half() for x in leaves(seqlen, seqlen)]
        got, want = compiled(*tensors), call(*tensors)
        for ours, theirs in zip(tuple(got), tuple(want), strict=True):
            assert torch.equal(ours, theirs)


@pytest.mark.parametrize("options", CALLS.values(), ids=list(CALLS))
def test_compiled_gradients(options: dict[str, Any]) -> None:
    def loss(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out: Tensor = xattn.attention(q * 1.0, k, v, backend="aiter-triton", **options)
        return out.square().sum()

    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    inputs = leaves(48, 48)
    got, want = torch.autograd.grad(compiled(*inputs), inputs), torch.autograd.grad(loss(*inputs), inputs)
    for ours, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(ours, theirs)
