"""What a call copies, kernel by kernel: number and bytes, for tensors in either layout."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from xattn_neuron import layout

import xattn

# Of qkv(512): 2 batch rows of 512 tokens of 64 numbers in bfloat16, for each head.
HEAD = 2 * 512 * 64 * 2
Q, K = 4 * HEAD, 2 * HEAD
LSE = 2 * 4 * 512 * 4


def heads_inside(x: Tensor) -> Tensor:
    """The same values, stored as (batch, nheads, seqlen, headdim)."""
    return x.transpose(1, 2).contiguous().transpose(1, 2)


def copies(run: Any, *tensors: Tensor, **given: Tensor) -> tuple[int, int]:
    layout.copied.number = layout.copied.bytes = 0
    run(*tensors, **given)
    return layout.copied.number, layout.copied.bytes


@pytest.mark.parametrize(
    ("options", "bsnh", "bhsd"),
    [
        # q, k, v and out; of tensors that have their heads first, out alone.
        ({}, (4, 2 * Q + 2 * K), (1, Q)),
        ({"causal": True}, (4, 2 * Q + 2 * K), (1, Q)),
        # lse leaves the kernel in tiles.
        ({"return_lse": True}, (5, 2 * Q + 2 * K + LSE), (2, Q + LSE)),
        # q is scaled in its copy.
        ({"window": (16, 0)}, (4, 2 * Q + 2 * K), (2, 2 * Q)),
        ({"sinks": torch.zeros(4)}, (5, 2 * Q + 2 * K + 2 * 4 * 4), (2, Q + 2 * 4 * 4)),
    ],
)
def test_attention_cte(
    aws: Any, qkv: Any, options: dict[str, Any], bsnh: tuple[int, int], bhsd: tuple[int, int]
) -> None:
    aws()
    tensors = qkv(512)
    run = xattn.plan(*tensors, backend="nki", **options)
    given = {name: value for name, value in options.items() if isinstance(value, Tensor)}
    assert copies(run, *tensors, **given) == bsnh
    assert copies(run, *map(heads_inside, tensors), **given) == bhsd


def test_attention_cte_in_the_prefix_form(aws: Any, qkv: Any) -> None:
    """k and v are cut in two, each key copied once: also where the heads come first."""
    aws()
    q, k, v = qkv(256, 512)
    run = xattn.plan(q, k, v, backend="nki", causal=True)
    assert copies(run, q, k, v) == (6, Q + 2 * K)
    assert copies(run, *map(heads_inside, (q, k, v))) == (6, Q + 2 * K)


def test_one_head_or_one_token_is_a_view(aws: Any, qkv: Any) -> None:
    aws()
    tensors = qkv(512, nheads=1)
    assert copies(xattn.plan(*tensors, backend="nki"), *tensors) == (0, 0)
    q, k, v = qkv(1, 512)
    # A single query and out; k and v have their heads inside.
    assert copies(xattn.plan(q, k, v, backend="nki", causal=True), q, k, v) == (2, 2 * K)


def test_attention_bwd(aws: Any, qkv: Any) -> None:
    """Five in and three out, beside the forward's."""
    aws()
    q, k, v = (x.requires_grad_() for x in qkv(512))
    out = xattn.attention(q, k, v, backend="nki", causal=True)
    layout.copied.number = layout.copied.bytes = 0
    torch.autograd.grad(out, (q, k, v), torch.ones(out.shape, dtype=out.dtype))
    assert (layout.copied.number, layout.copied.bytes) == (8, 4 * Q + 4 * K)


@pytest.mark.parametrize("changes", [{}, {"neuronx_cc": None}])
def test_flash_fwd(aws: Any, qkv: Any, changes: dict[str, Any]) -> None:
    """q and k have their headdim before the sequence, v not."""
    aws(**changes)
    tensors = qkv(512)
    run = xattn.plan(*tensors, backend="nki-legacy", causal=True)
    assert copies(run, *tensors) == (4, 2 * Q + 2 * K)
    assert copies(run, *map(heads_inside, tensors)) == (3, 2 * Q + K)


def test_flash_fwd_with_lse(aws: Any, qkv: Any) -> None:
    aws()
    tensors = qkv(512)
    run = xattn.plan(*tensors, backend="nki-legacy", causal=True, return_lse=True)
    assert copies(run, *tensors) == (5, 2 * Q + 2 * K + LSE)


def test_flash_attn_bwd(aws: Any, qkv: Any) -> None:
    aws()
    q, k, v = (x.requires_grad_() for x in qkv(512))
    out = xattn.attention(q, k, v, backend="nki-legacy", causal=True)
    layout.copied.number = layout.copied.bytes = 0
    torch.autograd.grad(out, (q, k, v), torch.ones(out.shape, dtype=out.dtype))
    assert (layout.copied.number, layout.copied.bytes) == (8, 4 * Q + 4 * K)


class Written(TorchDispatchMode):
    """The bytes that copying operators wrote."""

    bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        returned = func(*args, **(kwargs or {}))
        if func.overloadpacket in (torch.ops.aten.clone, torch.ops.aten.mul, torch.ops.aten.copy_):
            self.bytes += returned.numel() * returned.element_size()
        return returned


@pytest.mark.parametrize(
    ("backend", "options"),
    [
        ("nki", {"causal": True}),
        ("nki", {"window": (16, 0)}),
        ("nki", {"sinks": torch.zeros(4)}),
        ("nki-legacy", {"causal": True}),
    ],
)
def test_what_is_counted_is_what_is_copied(aws: Any, qkv: Any, backend: str, options: dict[str, Any]) -> None:
    """By torch's own account of the operators: nothing is copied behind the counter's back."""
    aws()
    tensors = qkv(512)
    run = xattn.plan(*tensors, backend=backend, **options)
    given = {name: value for name, value in options.items() if isinstance(value, Tensor)}
    run(*tensors, **given)
    with Written() as written:  # type: ignore[no-untyped-call]
        _, counted = copies(run, *tensors, **given)
    assert written.bytes == counted


def test_keys_and_values_are_never_repeated(aws: Any, qkv: Any) -> None:
    for backend in ("nki", "nki-legacy"):
        made = aws()
        q, k, v = qkv(512, nheads=8)
        xattn.attention(q, k, v, backend=backend, causal=True)
        assert [x.numel() for x in made.last.arguments[1:3]] == [k.numel(), v.numel()]
