"""The vendors' own kernels on a Hopper GPU, against the reference: each op and feature, pages without NaN, graphs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from nvidia.calls import right
from torch import Tensor

import xattn

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.version.hip is not None, reason="needs an NVIDIA GPU"
)

BACKENDS = ("fa3", "fa4", "cudnn")


def both(backend: str, op: Any, *tensors: Any, **options: Any) -> list[Any]:
    """What the backend and the reference make; skipped where this machine, build or backend does not serve the call."""
    if xattn.explain(op, *tensors, backend=backend, **options).backend is None:
        pytest.skip(f"{backend} does not serve it here")
    return [op(*tensors, backend=name, **options) for name in (backend, "reference")]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, device="cuda", generator=torch.Generator("cuda").manual_seed(seed)).bfloat16()


def qkv(seqlen_q: int, seqlen_k: int, headdim: int = 128) -> tuple[Tensor, Tensor, Tensor]:
    return (
        draw(2, seqlen_q, 8, headdim),
        draw(2, seqlen_k, 2, headdim, seed=1),
        draw(2, seqlen_k, 2, headdim, seed=2),
    )


def sinks() -> Tensor:
    return torch.linspace(-2, 3, 8, device="cuda")


OPTIONS: list[dict[str, Any]] = [
    {"causal": True},
    {"causal": True, "align": "top_left"},
    {"window": (20, 3)},
    {"window": (20, None)},
    {"window": (None, 7)},
    {"causal": True, "scale": -0.1},
    {"causal": True, "softcap": 5.0},
    {"causal": True, "sinks": sinks},
]


def made(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value() if callable(value) else value for name, value in options.items()}


def named(options: dict[str, Any]) -> str:
    """Of a call: the same in every process."""
    return ", ".join(name if callable(value) else f"{name}={value}" for name, value in options.items()) or "plain"


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("options", OPTIONS, ids=named)
@pytest.mark.parametrize("sizes", [(130, 300), (300, 130), (1, 300)], ids=str)
def test_attention(backend: str, options: dict[str, Any], sizes: tuple[int, int]) -> None:
    right(*both(backend, xattn.attention, *qkv(*sizes), return_lse=True, **made(options)))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("options", OPTIONS, ids=named)
@pytest.mark.parametrize("headdim", [64, 96, 128, 192, 256])
def test_gradients(backend: str, options: dict[str, Any], headdim: int) -> None:
    tensors = [x.requires_grad_() for x in qkv(130, 300, headdim)]
    results = both(backend, xattn.attention, *tensors, **made(options))
    dout = torch.randn_like(results[0])
    grads = [torch.autograd.grad(out, tensors, dout) for out in results]
    torch.testing.assert_close(*grads, atol=0.05, rtol=0.05)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("options", OPTIONS[:1] + OPTIONS[2:], ids=named)
@pytest.mark.parametrize("grads", [False, True], ids=["forward", "gradients"])
def test_packed_sequences(backend: str, options: dict[str, Any], grads: bool) -> None:
    """A sequence without queries, one without keys, and rows of none that hold NaN."""
    starts, keys = (
        torch.tensor(each, device="cuda").cumsum(0).int() for each in ([0, 5, 0, 130, 64], [0, 40, 3, 0, 90])
    )
    tensors = [draw(219, 8, 64), draw(153, 2, 64, seed=1), draw(153, 2, 64, seed=2)]
    for x in tensors:
        x[-20:] = torch.nan
    tensors = [x.requires_grad_(grads) for x in tensors]
    results = both(backend, xattn.varlen_attention, *tensors, starts, keys, **made(options))
    right(*results)
    if grads:
        dout = torch.randn_like(results[0])
        dout[-20:] = 0
        found = [torch.autograd.grad(out, tensors, dout) for out in results]
        torch.testing.assert_close(*found, atol=0.05, rtol=0.05)


@pytest.mark.parametrize("backend", BACKENDS)
def test_many_sequences(backend: str) -> None:
    """More than the 256 from which FlashAttention-4 looks for a tile's sequence in another way."""
    starts, keys = (torch.arange(301, device="cuda", dtype=torch.int32) * each for each in (3, 7))
    tensors = [draw(1000, 8, 64), draw(2100, 2, 64, seed=1), draw(2100, 2, 64, seed=2)]
    right(*both(backend, xattn.varlen_attention, *tensors, starts, keys, causal=True, return_lse=True))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("options", [{}, {"window": (40, 0)}, {"sinks": sinks}, {"softcap": 5.0}], ids=named)
@pytest.mark.parametrize("block_size", [16, 64, 128])
@pytest.mark.parametrize("queries", [None, [7, 1, 30, 0]], ids=["one query", "mixed"])
def test_pages(backend: str, options: dict[str, Any], block_size: int, queries: list[int] | None) -> None:
    """One sequence has no key, and what no query sees is -1 in the table."""
    lengths = torch.tensor([300, 5, 64, 0], device="cuda", dtype=torch.int32)
    columns = -(-300 // block_size)
    table = torch.randperm(4 * columns + 3, device="cuda")[: 4 * columns].view(4, columns).int()
    table[torch.arange(columns, device="cuda") * block_size >= lengths[:, None]] = -1
    caches = draw(4 * columns + 3, block_size, 2, 64), draw(4 * columns + 3, block_size, 2, 64, seed=1)
    starts = () if queries is None else (torch.tensor([0, *queries], device="cuda").cumsum(0).int(),)
    q = draw(4 if queries is None else sum(queries) + 2, 8, 64, seed=2)
    batch = (table, lengths, *starts)
    right(
        *both(backend, xattn.paged_attention, q, *caches, *batch, unseen_finite=True, return_lse=True, **made(options))
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_graph_of_cuda_and_one_of_torch_compile(backend: str) -> None:
    tensors = qkv(130, 300)
    expected = both(backend, xattn.attention, *tensors, causal=True)[1]

    def call(*tensors: Tensor) -> Tensor:
        return xattn.attention(*tensors, causal=True, backend=backend)

    right(torch.compile(call, fullgraph=True, backend="aot_eager")(*tensors), expected)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        call(*tensors)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = call(*tensors)
    found.zero_()
    graph.replay()
    right(found, expected)
