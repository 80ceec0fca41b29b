"""attention under autocast, torch.func, activation checkpointing, and second derivatives."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from ops.attention.compiled_calls import CALLS, call, close, qkv, with_grads
from support import notes_of
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

import xattn


@pytest.fixture(autouse=True)
def _fresh() -> None:
    torch._dynamo.reset()


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_autocast_casts_once_and_at_the_edge(name: str, compiled: bool) -> None:
    inputs = [x.detach().float().requires_grad_() for x in qkv(24)]
    function: Callable[..., Tensor] = lambda q, k, v: call(q, k, v, CALLS[name])  # noqa: E731
    if compiled:
        function = torch.compile(function, fullgraph=True, backend="aot_eager")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = function(*inputs)
        mixed = xattn.attention(inputs[0].bfloat16(), *inputs[1:])
    halves = [x.detach().bfloat16().requires_grad_() for x in inputs]
    want = call(*halves, CALLS[name])
    assert out.dtype == want.dtype
    assert mixed.dtype == torch.bfloat16
    assert torch.equal(out, want)
    grads = torch.autograd.grad(out.sum(), inputs)
    for ours, theirs in zip(grads, torch.autograd.grad(want.sum(), halves), strict=True):
        assert ours.dtype == torch.float32
        # Compiled, the cast back and the sum over rows may be fused into one rounding.
        assert (
            torch.allclose(ours, theirs.float(), rtol=2**-7, atol=2**-7)
            if compiled
            else torch.equal(ours, theirs.float())
        )
    # A plan made under autocast is not used outside it, nor the other way round.
    assert xattn.attention(*inputs).dtype == torch.float32


@pytest.mark.parametrize("same", [False, True], ids=["three-tensors", "one-tensor"])
def test_a_plan_made_under_autocast_serves_its_dtype_alone(same: bool) -> None:
    q, k, v = (x.detach().float() for x in qkv(24))
    inputs = (q, q, q) if same else (q, k, v)
    for dtype in (torch.bfloat16, torch.float16, torch.bfloat16):
        with torch.autocast("cpu", dtype=dtype):
            # Twice: remembered by the full key, and by the guard on the last call.
            assert [xattn.attention(*inputs).dtype for _ in range(2)] == [dtype, dtype]


def test_backward_under_autocast_is_the_same() -> None:
    inputs = [x.detach().float().requires_grad_() for x in qkv(24)]
    out = call(*inputs, CALLS["softcap"])
    want = torch.autograd.grad(out.sum(), inputs, retain_graph=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = torch.autograd.grad(out.sum(), inputs)
    for ours, theirs in zip(got, want, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("name", CALLS)
def test_func_grad(name: str) -> None:
    inputs = qkv(12)
    weight = torch.ones(2, 12, 4, 16).cumsum(1)
    got = torch.func.grad(lambda *x: (call(*x, CALLS[name]) * weight).sum(), argnums=(0, 1, 2))(*inputs)
    close(got, with_grads(lambda *x: call(*x, CALLS[name]), inputs)[1:])


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("in_dims", [(0, 0, 0), (2, None, None), (None, 1, 1)], ids=str)
def test_vmap_and_vmap_of_grad(name: str, in_dims: tuple[int | None, ...]) -> None:
    size = 3
    options = CALLS[name]
    stacked = []
    for x, dim in zip(qkv(12, grad=False), in_dims, strict=True):
        stacked.append(x if dim is None else torch.stack([x * (n + 1) / size for n in range(size)], dim))
    rows = [[x if d is None else x.select(d, n) for x, d in zip(stacked, in_dims, strict=True)] for n in range(size)]

    got = torch.vmap(lambda *x: call(*x, options), in_dims)(*stacked)
    close((got,), (torch.stack([call(*row, options) for row in rows]),))

    grad = torch.func.grad(lambda *x: call(*x, options).square().sum(), argnums=(0, 1, 2))
    want = [torch.stack(each) for each in zip(*(grad(*row) for row in rows), strict=True)]
    close(torch.vmap(grad, in_dims)(*stacked), tuple(want))


def test_vmap_over_sinks_and_bias() -> None:
    q, k, v = qkv(6, grad=False)
    sinks, bias = torch.randn(3, 4), torch.randn(3, 1, 4, 6, 6)

    def loss(sinks: Tensor, bias: Tensor) -> Tensor:
        return xattn.attention(q, k, v, sinks=sinks, bias=bias, backend="sdpa").square().sum()

    grad = torch.func.grad(loss, argnums=(0, 1))
    want = [torch.stack(each) for each in zip(*(grad(sinks[n], bias[n]) for n in range(3)), strict=True)]
    close(torch.vmap(grad)(sinks, bias), tuple(want))


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("name", CALLS)
def test_activation_checkpointing(name: str, reentrant: bool) -> None:
    inputs = qkv(12)
    want = with_grads(lambda *x: call(*x, CALLS[name]), inputs)
    # backward(), not autograd.grad: the reentrant implementation forbids that.
    out = checkpoint(call, *inputs, CALLS[name], use_reentrant=reentrant)
    out.backward(torch.ones_like(out).cumsum(1))
    close((out, *(x.grad for x in inputs if x.grad is not None)), want)


@pytest.mark.parametrize("name", ["window", "sinks", "softcap", "lse"])
def test_second_derivatives_raise_instead_of_being_zero(name: str) -> None:
    q, k, v = qkv(12)
    out = call(q, k, v, CALLS[name])
    (grad,) = torch.autograd.grad(out.square().sum(), q, create_graph=True)
    with pytest.raises(NotImplementedError, match="reference"):
        grad.sum().backward()
    # The backend that the message names has them.
    out = call(q, k, v, {**CALLS[name], "backend": "reference"})
    (grad,) = torch.autograd.grad(out.square().sum(), q, create_graph=True)
    grad.sum().backward()
    assert q.grad is not None


@pytest.mark.parametrize("name", ["causal", "window"])
def test_forward_mode_raises_and_says_who_has_it(name: str) -> None:
    q, k, v = qkv(12, grad=False)
    tangent = torch.linspace(-1, 1, q.numel(), dtype=q.dtype).view(q.shape)
    with pytest.raises(NotImplementedError) as caught:
        torch.func.jvp(lambda q: call(q, k, v, CALLS[name]), (q,), (tangent,))
    assert any('backend="reference" has them' in note for note in notes_of(caught.value))
    # So has a plan that is remembered, which sees tensors of the same kind.
    call(q, k, v, CALLS[name])
    with forward_ad.dual_level(), pytest.raises(NotImplementedError) as caught:
        call(forward_ad.make_dual(q, tangent), k, v, CALLS[name])
    assert any('backend="reference" has them' in note for note in notes_of(caught.value))

    def named(q: Tensor) -> Tensor:
        return call(q, k, v, {**CALLS[name], "backend": "reference"})

    got = torch.func.jvp(named, (q,), (tangent,))[1]
    step = 1e-3
    torch.testing.assert_close(
        got, (named(q + step * tangent) - named(q - step * tangent)) / (2 * step), atol=1e-2, rtol=1e-2
    )
