"""What a remembered plan must not depend on, and what it must."""

from __future__ import annotations

import copy
import pickle
import sys
from collections.abc import Generator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

import xattn
from xattn.dispatch import choice


def qkv(seqlen_q: int = 20, seqlen_k: int = 5) -> Any:
    torch.manual_seed(0)
    return [torch.randn(2, seqlen, nheads, 8) for seqlen, nheads in ((seqlen_q, 4), (seqlen_k, 2), (seqlen_k, 2))]


def right(q: Tensor, k: Tensor, v: Tensor) -> None:
    want = xattn.attention(q, k, v, backend="reference")
    torch.testing.assert_close(xattn.attention(q, k, v, backend="sdpa"), want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("few", [5, 40], ids=["few-keys", "many-keys"])
def test_a_plan_made_under_a_default_device_serves_outside_it(few: int) -> None:
    inputs = qkv(seqlen_k=few)
    with torch.device("meta"):
        right(*inputs)
    right(*inputs)


def test_a_plan_made_among_fake_tensors_serves_outside_them() -> None:
    inputs = qkv()
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert isinstance(xattn.attention(*inputs), FakeTensor)
    right(*inputs)


def test_a_plan_made_in_inference_mode_trains() -> None:
    inputs = qkv()
    with torch.inference_mode():
        run = xattn.plan(*inputs)
    leaves = [x.requires_grad_() for x in inputs]
    run(*leaves).sum().backward()
    assert all(x.grad is not None for x in leaves)


@pytest.mark.parametrize("window", [(3, sys.maxsize), (sys.maxsize, 3), (2**70, 1), (2**63 - 39, None)], ids=str)
def test_a_side_wider_than_any_sequence_is_open(window: tuple[int, int | None]) -> None:
    q, k, v = qkv(40, 40)
    left, right_side = (None if side is not None and side > 2**31 else side for side in window)
    for backend in ("reference", "sdpa"):
        got = xattn.attention(q, k, v, window=window, backend=backend)
        want = xattn.attention(q, k, v, window=(left, right_side), backend="reference")
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("align", ["bottom_right", "top_left"])
def test_a_bias_behind_the_diagonal_is_not_read(value: float, align: Any) -> None:
    q, k, v = qkv(12, 12)
    future = torch.ones(12, 12, dtype=torch.bool).triu(1)
    bias = torch.randn(12, 12)
    want = xattn.attention(q, k, v, causal=True, bias=bias, backend="reference")
    for backend in ("reference", "sdpa"):
        got = xattn.attention(q, k, v, causal=True, bias=bias.masked_fill(future, value), align=align, backend=backend)
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


def test_a_scope_that_cannot_be_reset_is_closed_all_the_same() -> None:
    import contextvars

    def scope() -> Generator[None, None, None]:
        with xattn.use_backend("reference"):
            yield

    generator = scope()
    contextvars.copy_context().run(next, generator)
    assert choice.visible.backend == "reference"
    with pytest.raises(ValueError, match="different Context"):
        generator.close()
    assert choice.visible.backend is None


def test_one_tensor_in_two_places_of_a_compiled_call() -> None:
    x = torch.randn(1, 12, 2, 8, requires_grad=True)
    for options in ({"causal": True}, {"window": (2, 2)}):
        compiled = torch.compile(
            lambda x, o=options: xattn.attention(x, x, x, **o), fullgraph=True, backend="aot_eager"
        )
        (got,) = torch.autograd.grad(compiled(x).sum(), x)
        (want,) = torch.autograd.grad(xattn.attention(x, x, x, **options).sum(), x)
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize(
    "options", [{"softcap": 0.0}, {"backend": "sdpa", "dropout_p": 0.5}, {"backend": "spda"}], ids=str
)
def test_errors_survive_pickling_and_copying(options: dict[str, Any]) -> None:
    with pytest.raises(xattn.XattnError) as caught:
        xattn.attention(*qkv(), **options)
    for again in (pickle.loads(pickle.dumps(caught.value)), copy.copy(caught.value)):
        assert type(again) is type(caught.value)
        assert str(again) == str(caught.value)
        assert getattr(again, "reasons", None) == getattr(caught.value, "reasons", None)


@pytest.mark.parametrize(
    "options", [{"softcap": 1e300}, {"softcap": 1e-40}, {"scale": 10**400}, {"scale": 1e39}], ids=str
)
def test_numbers_that_float32_does_not_hold_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(xattn.InvalidArgumentError, match=next(iter(options))):
        xattn.attention(*qkv(), **options)


def test_tensors_that_are_not_strided_are_refused() -> None:
    q, k, v = qkv()
    nested = torch.nested.nested_tensor([torch.randn(3, 2, 8), torch.randn(5, 2, 8)], layout=torch.jagged)
    for wrong in (q.to_sparse(), nested):
        with pytest.raises(xattn.InvalidArgumentError, match="strided"):
            xattn.attention(wrong, k, v)


def test_merged_tiles_add_up_to_one() -> None:
    # Bottom-right causal over a longer cache is two tiles; with values of 1 the output is 1, whatever the logits.
    q, k, _ = qkv(300, 1000)
    # With small logits torch's kernel adds up 1,000 weights in each tile, to 25 roundoffs on an AMD Zen 5.
    for size, roundoffs in ((1.0, 100), (135.0, 8), (1e4, 8)):
        out = xattn.attention(q * size, k, torch.ones_like(k), causal=True, backend="sdpa")
        assert (out - 1).abs().max() <= roundoffs * 2.0**-24
