"""Gradients of apply_rotary, autocast, torch.func and torch.compile."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ops.apply_rotary.rotary_calls import DTYPES, close, tensors, turned
from torch import Tensor

import xattn


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("rotary_dim", [8, 16])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_gradient_is_the_rotation_back_rounded_once(dtype: torch.dtype, interleaved: bool, rotary_dim: int) -> None:
    q, k, cos, sin = tensors(dtype, rotary_dim=rotary_dim, batched=True)
    dq, dk = (torch.randn(x.shape, generator=torch.Generator().manual_seed(n)).to(dtype) for n, x in enumerate((q, k)))
    out = xattn.apply_rotary(q.requires_grad_(), k.requires_grad_(), cos, sin, interleaved=interleaved)
    for got, given in zip(torch.autograd.grad(out, (q, k), (dq, dk)), (dq, dk), strict=True):
        close(got, turned(given, cos, -sin, interleaved), dtype)
        assert torch.equal(got[..., rotary_dim:], given[..., rotary_dim:])


@pytest.mark.parametrize("interleaved", [False, True])
def test_gradients_of_any_order(interleaved: bool) -> None:
    q, k, cos, sin = tensors(torch.float64, batch=1, seqlen=2, nheads=1, nheads_k=1, headdim=6, rotary_dim=4)

    def rotated(q: Tensor, k: Tensor) -> Any:
        return xattn.apply_rotary(q, k, cos, sin, interleaved=interleaved)

    leaves = (q.requires_grad_(), k.requires_grad_())
    assert torch.autograd.gradcheck(rotated, leaves, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(rotated, leaves)


def test_training_keeps_the_tables_alone() -> None:
    q, k, cos, sin = tensors(torch.bfloat16, seqlen=64)
    kept: list[Tensor] = []

    def keep(x: Tensor) -> Tensor:
        kept.append(x)
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        xattn.apply_rotary(q.requires_grad_(), k.requires_grad_(), cos, sin)
    assert kept
    assert max(x.untyped_storage().nbytes() for x in kept) <= cos.untyped_storage().nbytes()


def test_only_k_wants_a_gradient() -> None:
    q, k, cos, sin = tensors()
    out, out_k = xattn.apply_rotary(q, k.requires_grad_(), cos, sin)
    assert not out.requires_grad
    assert out_k.requires_grad


def test_vmap() -> None:
    q, k, cos, sin = tensors()
    stacked = torch.stack((q, 2 * q))
    got = torch.func.vmap(lambda x: xattn.apply_rotary(x, k, cos, sin)[0])(stacked)
    assert torch.equal(got, torch.stack([xattn.apply_rotary(x, k, cos, sin)[0] for x in stacked]))


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("backend", ["auto", "reference", ("reference",)])
def test_a_compiled_call_in_one_graph(interleaved: bool, backend: Any) -> None:
    q, k, cos, sin = tensors(rotary_dim=8)
    q.requires_grad_()

    def rotated(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        return xattn.apply_rotary(q, k, cos, sin, interleaved=interleaved, backend=backend)

    compiled = torch.compile(rotated, fullgraph=True, backend="aot_eager")
    for got, want in zip(compiled(q, k), rotated(q, k), strict=True):
        assert torch.equal(got, want)
    (dq,) = torch.autograd.grad(compiled(q, k)[0].sum(), q)
    (want,) = torch.autograd.grad(rotated(q, k)[0].sum(), q)
    torch.testing.assert_close(dq, want)


def test_a_compiled_call_of_any_length() -> None:
    compiled = torch.compile(
        lambda *given: xattn.apply_rotary(*given)[0], fullgraph=True, backend="aot_eager", dynamic=True
    )
    for seqlen in (5, 7, 9):
        given = tensors(seqlen=seqlen)
        assert torch.equal(compiled(*given), xattn.apply_rotary(*given)[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_autocast_leaves_the_dtype_of_q(dtype: torch.dtype) -> None:
    given = tensors(dtype, rotary_dim=8)
    want = xattn.apply_rotary(*given)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = xattn.apply_rotary(*given)
    assert all(x.dtype == dtype and torch.equal(x, y) for x, y in zip(got, want, strict=True))
