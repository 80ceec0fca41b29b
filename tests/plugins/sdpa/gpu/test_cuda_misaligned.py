"""On an NVIDIA GPU: rows that do not begin at a multiple of 16 bytes, of q, k, v and the gradient that comes in. cuDNN
gets them wrong without a word; flash loses the CUDA context, and every test after it fails.

Run as `python -m pytest -q tests/plugins/sdpa/gpu`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from plugins.sdpa.gpu.gpu_calls import VIEWS, close, needs_cuda, oracle, packed, randn, shifted, with_grads
from torch import Tensor

import xattn

pytestmark = needs_cuda


PLACES = ["q", "k", "v", "dout", "all"]
# The large ones run on cuDNN, the others on flash, on the efficient kernel and in blocks.
KINDS: dict[str, tuple[tuple[int, ...], torch.dtype, dict[str, Any]]] = {
    "cudnn": ((4, 2048, 16, 64), torch.bfloat16, {"causal": True}),
    "cudnn full": ((4, 2048, 16, 64), torch.float16, {}),
    "cudnn below": ((4, 2048, 16, 64), torch.bfloat16, {"causal": True, "return_lse": True}),
    "flash": ((2, 256, 4, 64), torch.bfloat16, {"causal": True}),
    "flash below": ((2, 256, 4, 64), torch.bfloat16, {"window": (64, 0)}),
    "headdim 60": ((2, 256, 4, 60), torch.bfloat16, {"causal": True}),
    "mask": ((2, 256, 4, 64), torch.bfloat16, {"mask": True}),
    "softcap": ((1, 256, 2, 64), torch.bfloat16, {"softcap": 10.0}),
    "float32": ((2, 256, 4, 64), torch.float32, {"causal": True}),
}


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", KINDS)
def test_misaligned_rows(name: str, place: str, view: str) -> None:
    shape, dtype, options = KINDS[name]
    if "mask" in options:
        options = {"mask": torch.ones(shape[1], shape[1], dtype=torch.bool, device="cuda").tril()}
    tensors = {each: randn(*shape, dtype=dtype, seed=i) for i, each in enumerate(("q", "k", "v", "dout"))}
    moved = {each: VIEWS[view](x) if place in (each, "all") else x for each, x in tensors.items()}
    want = oracle(*tensors.values(), **options)
    close(with_grads(*moved.values(), **options, backend="sdpa"), want)
    # Without gradients another kernel may serve.
    close(with_grads(moved["q"], moved["k"], moved["v"], **options, backend="sdpa"), want)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("name", KINDS)
def test_misaligned_rows_in_a_graph(name: str, dynamic: bool) -> None:
    """A graph does not see where rows begin, and serves tensors that begin elsewhere than those it was made with."""
    shape, dtype, options = KINDS[name]
    if "mask" in options:
        options = {"mask": torch.ones(shape[1], shape[1], dtype=torch.bool, device="cuda").tril()}
    torch._dynamo.reset()

    def call(q: Tensor, k: Tensor, v: Tensor) -> Any:
        return xattn.attention(q, k, v, **options, backend="sdpa")

    compiled = torch.compile(call, fullgraph=True, dynamic=dynamic)
    q, k, v, dout = (randn(*shape, dtype=dtype, seed=i) for i in range(4))
    want = oracle(q, k, v, dout, **options)
    for view in (torch.clone, shifted, packed):
        leaves = [view(x).requires_grad_() for x in (q, k, v)]
        result = compiled(*leaves)
        out = result[0] if isinstance(result, tuple) else result
        close([out.detach(), *torch.autograd.grad(out, leaves, view(dout))], want)


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("seqlen_k", [64, 129, 1024])
def test_misaligned_decode(seqlen_k: int, view: str) -> None:
    q, k, v = randn(4, 1, 8, 64), randn(4, seqlen_k, 2, 64, seed=1), randn(4, seqlen_k, 2, 64, seed=2)
    lengths = torch.tensor([seqlen_k, 1, 0, seqlen_k // 2], dtype=torch.int32, device="cuda")
    for options in ({}, {"causal": True}, {"seqlens_k": lengths}, {"return_lse": True}):
        moved = [VIEWS[view](x) for x in (q, k, v)]
        close(with_grads(*moved, **options, backend="sdpa"), oracle(q, k, v, **options))


def test_an_expanded_gradient() -> None:
    q, k, v = (randn(4, 2048, 16, 64, seed=i) for i in range(3))
    dout = torch.ones((), dtype=q.dtype, device="cuda").expand(q.shape)
    close(with_grads(q, k, v, dout, causal=True, backend="sdpa"), oracle(q, k, v, dout, causal=True))


@pytest.mark.parametrize("options", [{}, {"return_lse": True}, {"causal": True}], ids=str)
@pytest.mark.parametrize("swapped_first", [False, True])
def test_a_gradient_in_another_layout_than_the_last(options: dict[str, Any], swapped_first: bool) -> None:
    """A plan of cuDNN's backward is kept by the layout of q, k and v alone."""
    q, k, v, dout = (randn(4, 2048, 16, 64 + 8 * swapped_first, seed=i) for i in range(4))
    swapped = dout.transpose(1, 2).contiguous().transpose(1, 2)
    want = oracle(q, k, v, dout, **options)
    for each in (swapped, dout, swapped) if swapped_first else (dout, swapped, dout):
        close(with_grads(q, k, v, each, **options, backend="sdpa"), want)


FUNC: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "cudnn": ((4, 2048, 16, 64), {"causal": True}),
    "flash": ((2, 256, 4, 64), {"causal": True}),
    "flash below": ((2, 256, 4, 64), {"window": (64, 0)}),
}


@pytest.mark.parametrize("view", [torch.clone, shifted], ids=["aligned", "shifted"])
@pytest.mark.parametrize("kind", FUNC)
def test_inside_vmap_and_func_grad(kind: str, view: Callable[[Tensor], Tensor]) -> None:
    """Where no one sees the rows of a tensor; gradients come in two layouts, one after the other."""
    shape, options = FUNC[kind]
    q, k, v, dout = (randn(*shape, seed=i) for i in range(4))
    want = oracle(q, k, v, dout, **options)
    moved = [view(x) for x in (q, k, v)]

    def call(*qkv: Tensor) -> Any:
        return xattn.attention(*qkv, **options, backend="sdpa")

    rows = torch.vmap(lambda *qkv: call(*(x[None] for x in qkv))[0])(*moved)
    close([rows], want)
    for each in (dout, dout.transpose(1, 2).contiguous().transpose(1, 2)):

        def loss(*qkv: Tensor, dout: Tensor = each) -> Any:
            return (call(*qkv) * dout).sum()

        close([rows, *torch.func.grad(loss, (0, 1, 2))(*moved)], want)
