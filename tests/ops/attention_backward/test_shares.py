"""The share of a part of the keys: of all keys it is autograd's gradient, and those of a ring add up to it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import xattn

OFF, KEYS = 3, 9
SLOPES = torch.tensor([0.5, 0.25, 0.125, 0.0625])
BIAS = torch.linspace(-2, 2, 2 * 4 * 6 * KEYS).view(2, 4, 6, KEYS)
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "causal": {"causal": True},
    "window": {"window": (4, 1), "scale": 0.3},
    "softcap": {"softcap": 1.5, "causal": True},
    "slopes": {"alibi_slopes": SLOPES, "causal": True},
    "negative scale": {"scale": -0.4},
    "bias": {"bias": BIAS},
    "mask": {"mask": BIAS.abs() < 1.5, "causal": True},
}
by_backend = pytest.mark.parametrize("backend", ["reference", "sdpa"])


def tensors(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(7)
    shapes = ((2, 6, 4, 8), (2, KEYS, 2, 8), (2, KEYS, 2, 5))
    q, k, v = (torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes)
    return q, k, v


def whole(options: dict[str, Any], sinks: Tensor | None = None) -> tuple[Tensor, ...]:
    """dout, out, lse, and autograd's gradients of all keys."""
    leaves = [x.requires_grad_() for x in tensors()]
    answer = xattn.attention(*leaves, **options, sinks=sinks, return_lse=True, backend="reference")
    dout = torch.linspace(-1, 1, answer.out.numel(), dtype=torch.float64).view(answer.out.shape)
    return dout, answer.out.detach(), answer.lse.detach(), *torch.autograd.grad(answer.out, leaves, dout)


def close(got: Tensor, want: Tensor) -> None:
    # lse is float32, whatever else is.
    torch.testing.assert_close(got, want, rtol=2e-6, atol=2e-6)


@by_backend
@pytest.mark.parametrize("sinks", [None, torch.linspace(-1, 1, 4)], ids=["", "sinks"])
@pytest.mark.parametrize("name", OPTIONS)
def test_all_keys_give_autograds_gradient(name: str, sinks: Tensor | None, backend: str) -> None:
    dout, out, lse, *want = whole(OPTIONS[name], sinks)
    got = xattn.attention_backward(dout, *tensors(), out, lse, **OPTIONS[name], backend=backend)
    for one, other in zip(got, want, strict=True):
        close(one, other)


@by_backend
@pytest.mark.parametrize("name", OPTIONS)
def test_a_ring_of_three_adds_up(name: str, backend: str) -> None:
    dout, out, lse, *want = whole(OPTIONS[name], torch.zeros(4))
    q, k, v = tensors()
    shares = []
    for first in range(0, KEYS, 3):
        keys = slice(first, first + 3)
        own = {key: value[..., keys] if key in ("bias", "mask") else value for key, value in OPTIONS[name].items()}
        own |= {"align": OFF - first, "backend": backend}
        shares.append(xattn.attention_backward(dout, q, k[:, keys], v[:, keys], out, lse, **own))
    dq, dk, dv = zip(*shares, strict=True)
    for one, other in zip((sum(dq), torch.cat(dk, 1), torch.cat(dv, 1)), want, strict=True):
        assert isinstance(one, Tensor)
        close(one, other)


@by_backend
def test_what_no_query_sees_is_not_read_and_gets_nothing(backend: str) -> None:
    """The first two queries see no key of this part, and no query sees its last two."""
    q, k, v = (x.float() for x in tensors())
    k, v = k.clone(), v.clone()
    k[:, 4:], v[:, 4:] = torch.nan, torch.inf
    out, dout, lse = torch.randn(2, 6, 4, 5), torch.randn(2, 6, 4, 5), torch.full((2, 4, 6), 2.0)
    dq, dk, dv = xattn.attention_backward(dout, q, k, v, out, lse, causal=True, align=-2, backend=backend)
    assert not dq[:, :2].any()
    assert not dk[:, 4:].any()
    assert not dv[:, 4:].any()
    assert all(x.isfinite().all() and x.any() for x in (dq, dk, dv))


@by_backend
def test_a_query_of_lse_minus_infinity_has_no_share(backend: str) -> None:
    q, k, v = tensors()
    lse = torch.full((2, 4, 6), 2.0)
    lse[:, :, 3] = -torch.inf
    ones, zeros = (torch.full((2, 6, 4, 5), value, dtype=torch.float64) for value in (1.0, 0.0))
    dq, *_ = xattn.attention_backward(ones, q, k, v, zeros, lse, backend=backend)
    assert not dq[:, 3].any()
    assert dq.isfinite().all()


@by_backend
def test_lengths_of_each_row(backend: str) -> None:
    options: dict[str, Any] = {"causal": True, "seqlens_k": torch.tensor([2, 8])}
    dout, out, lse, *want = whole(options)
    for one, other in zip(
        xattn.attention_backward(dout, *tensors(), out, lse, **options, backend=backend), want, strict=True
    ):
        close(one, other)


@by_backend
def test_gradients_that_come_in_may_have_any_strides(backend: str) -> None:
    dout, out, lse, *_ = whole({})
    want = xattn.attention_backward(torch.ones_like(dout), *tensors(), out, lse, backend=backend)
    ones = torch.ones((), dtype=dout.dtype).expand(dout.shape)
    turned = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (out, lse)]
    got = xattn.attention_backward(ones, *tensors(), *turned, backend=backend)
    for one, other in zip(got, want, strict=True):
        close(one, other)


def test_autocast_casts_nothing_and_is_off_inside() -> None:
    q, k, v = (x.float() for x in tensors())
    out, lse = xattn.attention(q, k, v, return_lse=True)
    want = xattn.attention_backward(out, q, k, v, out, lse)
    with torch.autocast("cpu", torch.bfloat16):
        got = xattn.attention_backward(out, q, k, v, out, lse)
    assert all(torch.equal(one, other) for one, other in zip(got, want, strict=True))


def test_sdpa_has_no_gradient_of_the_gradients() -> None:
    q, k, v = tensors()
    out, lse = xattn.attention(q, k, v, return_lse=True)
    with pytest.raises(xattn.UnsupportedError, match="grad_inputs"):
        xattn.attention_backward(out, q.requires_grad_(), k, v, out, lse, backend="sdpa")
