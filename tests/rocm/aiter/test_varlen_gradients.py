"""Gradients of packed sequences by the installed aiter, and both ops over them under torch.compile."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support import extended
from torch import Tensor
from xattn_rocm.installation import usable
from xattn_rocm.rules import holds

import xattn

LENGTHS = {
    "of each": ([5, 20, 1], [9, 20, 6]),
    "without keys or queries": ([5, 7, 0, 4], [9, 0, 3, 6]),
    "more queries than keys": ([40, 9], [3, 9]),
}
BOUNDS: dict[str, Any] = {"max_seqlen_q": 64, "max_seqlen_k": 64}


def starts(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0, dtype=torch.int32)


def packed(tokens_q: int, tokens_k: int) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(tokens_q)
    sizes = ((tokens_q, 4), (tokens_k, 2), (tokens_k, 2))
    q, k, v = (torch.randn(tokens, nheads, 16, requires_grad=True) for tokens, nheads in sizes)
    return q, k, v


@pytest.mark.parametrize(
    "options", [{"causal": True, "alibi_slopes": torch.linspace(0.2, 0.8, 4)}, *extended({}, {"causal": True})]
)
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=list(LENGTHS))
def test_gradients_are_the_contracts(lengths: tuple[list[int], list[int]], options: dict[str, Any]) -> None:
    at = starts(lengths[0]), starts(lengths[1])
    inputs = packed(sum(lengths[0]) + 3, sum(lengths[1]))
    with torch.no_grad():
        inputs[0][-3:] = torch.nan  # the rows of no sequence
    q, k, v = wide = [x.detach().double().requires_grad_() for x in inputs]
    got = xattn.varlen_attention(*inputs, *at, backend="aiter-triton", **options)
    want = xattn.varlen_attention(q, k, v, *at, backend="reference", **options)
    # A gradient in another layout than that of out.
    dout = torch.randn(want.transpose(0, 1).shape).transpose(0, 1)
    grads = torch.autograd.grad(got, inputs, dout)
    for ours, theirs in zip(grads, torch.autograd.grad(want, wide, dout.double()), strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(holds("triton-sinks-gradient-noise", usable()) or holds("triton-mha-no-sinks", usable()), reason="")
def test_gradients_of_sinks() -> None:
    at, inputs = starts([5, 20, 7]), [*packed(32, 32), torch.randn(4, requires_grad=True)]
    wide = [x.detach().double().requires_grad_() for x in inputs]
    found = []
    for tensors, backend in ((inputs, "aiter-triton"), (wide, "reference")):
        q, k, v, sinks = tensors
        out = xattn.varlen_attention(q, k, v, at, sinks=sinks, causal=True, backend=backend)
        found.append(torch.autograd.grad(out.square().sum(), tensors))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-4, atol=1e-4)


def test_there_is_no_second_derivative() -> None:
    inputs = packed(9, 9)
    out = xattn.varlen_attention(*inputs, starts([4, 5]), causal=True, backend="aiter-triton")
    (dq,) = torch.autograd.grad(out.square().sum(), inputs[:1], create_graph=True)
    with pytest.raises(NotImplementedError, match="second derivative"):
        dq.sum().backward()


def attended(*tensors: Tensor, **options: Any) -> Any:
    q, k, v, at = tensors
    return xattn.varlen_attention(q * 1.0, k, v, at, causal=True, **BOUNDS, backend="aiter-triton", **options)


def test_compiled_forward_serves_other_lengths() -> None:
    compiled = torch.compile(attended, backend="aot_eager", fullgraph=True)
    for lengths in ([5, 20, 7], [9, 9, 9, 9]):
        inputs, at = tuple(x.detach() for x in packed(sum(lengths), sum(lengths))), starts(lengths)
        got, want = compiled(*inputs, at, return_lse=True), attended(*inputs, at, return_lse=True)
        assert all(map(torch.equal, got, want))


def test_compiled_gradients() -> None:
    def loss(*tensors: Tensor) -> Tensor:
        out: Tensor = attended(*tensors)
        return out.square().sum()

    inputs, at = packed(32, 32), starts([5, 20, 7])
    got = torch.autograd.grad(torch.compile(loss, backend="aot_eager", fullgraph=True)(*inputs, at), inputs)
    for ours, theirs in zip(got, torch.autograd.grad(loss(*inputs, at), inputs), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_compiled_backward() -> None:
    def share(*tensors: Tensor) -> Any:
        q, *rest = tensors
        return xattn.varlen_attention_backward(q * 1.0, *rest, causal=True, **BOUNDS, backend="aiter-triton")

    q, k, v = (x.detach() for x in packed(32, 32))
    at = starts([5, 20, 7])
    out, lse = xattn.varlen_attention(q, k, v, at, causal=True, return_lse=True, backend="reference")
    tensors = (q, q, k, v, out, lse, at)
    assert all(map(torch.equal, torch.compile(share, backend="aot_eager", fullgraph=True)(*tensors), share(*tensors)))


@pytest.mark.parametrize(
    ("dtype", "options"),
    [
        (torch.float16, {"window": (9, 0), "softcap": 3.0, "sinks": torch.zeros(4)}),
        (torch.float16, {"alibi_slopes": torch.linspace(0.2, 0.8, 4), "out_dtype": torch.float32}),
        (torch.float32, {"unseen_finite": True}),
    ],
    ids=str,
)
def test_compiled_pages(dtype: torch.dtype, options: dict[str, Any]) -> None:
    def call(*tensors: Any) -> Any:
        q, k, v, table, lengths, at = tensors
        return xattn.paged_attention(q * 1.0, k, v, table, lengths, at, **BOUNDS, backend="aiter-triton", **options)

    compiled = torch.compile(call, backend="aot_eager", fullgraph=True)
    k, v = torch.randn(2, 9, 16, 2, 16).to(dtype)
    for lengths, keys in (([5, 3, 7], [30, 3, 12]), ([1, 9], [30, 9])):
        table = torch.arange(9, dtype=torch.int32)[: 3 * len(keys)].view(-1, 3)
        tensors = (torch.randn(sum(lengths), 4, 16).to(dtype), k, v, table)
        batch = (torch.tensor(keys, dtype=torch.int32), starts(lengths))
        assert torch.equal(compiled(*tensors, *batch), call(*tensors, *batch))
