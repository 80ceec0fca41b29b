"""Sizes that a tracer keeps symbolic: no guard that torch's own attention does not make, and sizes out of the data."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support import extended
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from torch.export import Dim, export

import xattn

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


def torch_attention(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, **options).transpose(1, 2)


# xattn's call, and torch's own of the same meaning.
PAIRS: dict[str, tuple[Attend, Attend]] = {
    "full": (xattn.attention, torch_attention),
    "causal": (
        lambda q, k, v: xattn.attention(q, k, v, causal=True, align="top_left"),
        lambda q, k, v: torch_attention(q, k, v, is_causal=True),
    ),
    "grouped": (
        lambda q, k, v: xattn.attention(q, k[:, :, :1], v[:, :, :1]),
        lambda q, k, v: torch_attention(q, k[:, :, :1], v[:, :, :1], enable_gqa=True),
    ),
}


class Module(nn.Module):
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *tensors: Tensor) -> Any:
        return self.function(*tensors)


@pytest.fixture(autouse=True)
def _fresh() -> None:
    torch._dynamo.reset()


def graphs(function: Attend, sizes: list[tuple[int, int, int]]) -> int:
    """How many graphs torch.compile makes for q, k, v of each (seqlen_q, seqlen_k, nheads)."""
    counter = CompileCounter()
    compiled = torch.compile(function, backend=counter, dynamic=True, fullgraph=True)
    for seqlen_q, seqlen_k, nheads in sizes:
        k = torch.randn(2, seqlen_k, nheads, 8)
        compiled(torch.randn(2, seqlen_q, nheads, 8), k, k.clone())
    return counter.frame_count


LENGTHS = range(1, 65)
HEADS = range(1, 33)


@pytest.mark.parametrize("name", ["full", *extended("causal", "grouped")])
def test_no_more_graphs_than_torch_over_lengths(name: str) -> None:
    ours, theirs = PAIRS[name]
    for sizes in ([(n, n, 16) for n in LENGTHS], [(1, n, 16) for n in LENGTHS]):
        torch._dynamo.reset()
        wanted = graphs(theirs, sizes)
        torch._dynamo.reset()
        assert graphs(ours, sizes) <= wanted


@pytest.mark.parametrize("name", ["full", *extended("causal", "grouped")])
def test_no_more_graphs_than_torch_over_heads(name: str) -> None:
    ours, theirs = PAIRS[name]
    sizes = [(24, 24, n) for n in HEADS]
    wanted = graphs(theirs, sizes)
    torch._dynamo.reset()
    assert graphs(ours, sizes) <= wanted


@pytest.mark.parametrize("nheads", [1, 3, 16, 32])
@pytest.mark.parametrize("name", PAIRS)
def test_export_lengths_from_two(name: str, nheads: int) -> None:
    ours, theirs = PAIRS[name]
    length = Dim("length", min=2, max=64)
    example = tuple(torch.randn(2, 40, nheads, 8) for _ in range(3))
    program = export(Module(ours), example, dynamic_shapes=(({1: length},) * 3,)).module()
    for seqlen in (2, 15, 64):
        q, k, v = (torch.randn(2, seqlen, nheads, 8, dtype=torch.float32) for _ in range(3))
        torch.testing.assert_close(program(q, k, v), theirs(q, k, v))


def test_export_queries_and_keys_apart() -> None:
    sizes = {1: Dim("seqlen_q", min=2, max=64)}, {1: Dim("seqlen_k", min=2, max=64)}
    example = torch.randn(2, 8, 4, 8), torch.randn(2, 40, 4, 8)
    causal = Module(lambda q, k: xattn.attention(q, k, k, causal=True))
    program = export(causal, example, dynamic_shapes=(sizes,)).module()
    for seqlen_q, seqlen_k in ((8, 40), (2, 64), (30, 30), (20, 3)):
        q, k = torch.randn(2, seqlen_q, 4, 8), torch.randn(2, seqlen_k, 4, 8)
        want = xattn.attention(q, k, k, causal=True, backend="reference")
        torch.testing.assert_close(program(q, k), want)


def every_option(seqlen_q: int, seqlen_k: int | None) -> dict[str, dict[str, Any]]:
    """Options of `attention`, for 4 heads. seqlen_k: None where it comes out of the data."""
    found: dict[str, dict[str, Any]] = {
        "full": {},
        "causal": {"causal": True},
        "top_left": {"causal": True, "align": "top_left"},
        "offset": {"causal": True, "align": 1},
        "window": {"window": (3, 0)},
        "sinks": {"sinks": torch.linspace(-1, 1, 4)},
        "softcap": {"softcap": 3.0},
        "alibi": {"alibi_slopes": torch.tensor([0.5, 0.25, 0.125, 0.0625])},
        "lse": {"return_lse": True},
        "mask of rows": {"mask": torch.arange(4 * seqlen_q).view(4, seqlen_q, 1) % 5 != 0},
    }
    if seqlen_k is not None:
        found["mask"] = {"mask": torch.ones(seqlen_q, seqlen_k, dtype=torch.bool).tril()}
        found["mask of keys"] = {"mask": torch.arange(seqlen_k).view(1, 1, 1, -1) != 1}
        found["bias"] = {"bias": torch.linspace(-1, 1, seqlen_q * seqlen_k).view(seqlen_q, seqlen_k)}
    return found


def compare(got: Any, want: Any) -> None:
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


def attend_kept(x: Tensor, kept: Tensor, options: dict[str, Any], backend: str) -> Any:
    q = x[kept]
    return xattn.attention(q, q, q, backend=backend, **options)


@functools.cache
def _torch_serves_unbacked(masked: bool) -> bool:
    """Whether torch's own attention can be exported with a batch that comes out of the data: not in 2.11."""
    mask = torch.ones(1, 1, 6, 6, dtype=torch.bool) if masked else None

    def own(x: Tensor, kept: Tensor) -> Tensor:
        q = x[kept].transpose(1, 2)
        return F.scaled_dot_product_attention(q, q, q, None if mask is None else mask.expand(q.shape[0], -1, -1, -1))

    try:
        export(Module(own), (torch.randn(5, 6, 4, 8), KEPT))
    except Exception:
        return False
    return True


def skip_where_torch_fails(options: dict[str, Any]) -> None:
    if not _torch_serves_unbacked("mask" in options or "bias" in options):
        pytest.skip("torch's own attention does not take such sizes in this version")


KEPT = torch.tensor([True, False, True, True, False])
KEPT_LATER = torch.tensor([True, True, True, True, False])


# 5 keys are fewer than a vector register holds, where sdpa adds a mask.
@pytest.mark.parametrize("seqlen", [5, 20])
@pytest.mark.parametrize("name", every_option(1, 1))
def test_unbacked_batch(name: str, seqlen: int) -> None:
    options = every_option(seqlen, seqlen)[name]
    skip_where_torch_fails(options)
    x = torch.randn(5, seqlen, 4, 8)
    program = export(Module(lambda x, kept: attend_kept(x, kept, options, "auto")), (x, KEPT)).module()
    for kept in (KEPT, KEPT_LATER):
        compare(program(x, kept), attend_kept(x, kept, options, "reference"))


def attend_cache(q: Tensor, cache: Tensor, length: Tensor, options: dict[str, Any], backend: str) -> Any:
    n: Any = length.item()
    torch._check(n >= 2)
    torch._check(n <= cache.shape[1])
    return xattn.attention(q, cache[:, :n], cache[:, :n], backend=backend, **options)


@pytest.mark.parametrize("seqlen_q", [1, 4])
@pytest.mark.parametrize("name", every_option(1, None))
def test_unbacked_cache_length(name: str, seqlen_q: int) -> None:
    options = every_option(seqlen_q, None)[name]
    q, cache = torch.randn(2, seqlen_q, 4, 8), torch.randn(2, 30, 2, 8)
    module = Module(lambda q, cache, n: attend_cache(q, cache, n, options, "auto"))
    program = export(module, (q, cache, torch.tensor(9))).module()
    for length in (2, 9, 21):
        compare(
            program(q, cache, torch.tensor(length)), attend_cache(q, cache, torch.tensor(length), options, "reference")
        )


@pytest.mark.parametrize("name", ["causal", "offset", "window", "softcap", "lse"])
def test_unbacked_cache_that_may_be_empty(name: str) -> None:
    """Where the call is more than torch's own attention, which asks whether there are keys."""
    options = every_option(4, None)[name]

    def attend(q: Tensor, cache: Tensor, length: Tensor, backend: str) -> Any:
        n: Any = length.item()
        torch._check(n >= 0)
        torch._check(n <= cache.shape[1])
        return xattn.attention(q, cache[:, :n], cache[:, :n], backend=backend, **options)

    q, cache = torch.randn(2, 4, 4, 8), torch.randn(2, 30, 2, 8)
    program = export(Module(lambda q, cache, n: attend(q, cache, n, "auto")), (q, cache, torch.tensor(9))).module()
    for length in map(torch.tensor, (0, 1, 3, 9, 30)):
        compare(program(q, cache, length), attend(q, cache, length, "reference"))


@pytest.mark.parametrize("backend", ["sdpa", "reference"])
@pytest.mark.parametrize("name", ["full", "mask", *extended("top_left", "window")])
def test_unbacked_sizes_are_compiled(name: str, backend: str) -> None:
    options = every_option(6, 6)[name]
    skip_where_torch_fails(options)
    x = torch.randn(5, 6, 4, 8, requires_grad=True)

    def function(x: Tensor, kept: Tensor) -> Tensor:
        return attend_kept(x, kept, options, backend)  # type: ignore[no-any-return]

    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
        for kept in (KEPT, KEPT_LATER):
            got, want = compiled(x, kept), function(x, kept)
            compare(got, want)
            compare(torch.autograd.grad(got.sum(), x), torch.autograd.grad(want.sum(), x))


def test_two_unbacked_sizes_are_checked_by_the_graph() -> None:
    module = Module(lambda q, k, kept, other: xattn.attention(q[kept], k[other], k[other]))
    q, k = torch.randn(5, 20, 4, 8), torch.randn(5, 20, 4, 8)
    program = export(module, (q, k, KEPT, KEPT.clone())).module()
    compare(program(q, k, KEPT_LATER, KEPT_LATER), xattn.attention(*(x[KEPT_LATER] for x in (q, k, k))))
    with pytest.raises(RuntimeError):
        program(q, k, KEPT, KEPT_LATER)


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("name", ["full", "causal", "window", "alibi", "lse"])
def test_unbacked_packed_tokens(name: str, strict: bool) -> None:
    options = every_option(1, None)[name]

    def pack(x: Tensor, kept: Tensor, cu_seqlens: Tensor) -> Any:
        q = x[kept]
        return xattn.varlen_attention(q, q, q, cu_seqlens, max_seqlen_q=16, max_seqlen_k=16, **options)

    x, place = torch.randn(30, 4, 8), torch.arange(30)
    example = x, place < 11, torch.tensor([0, 4, 11], dtype=torch.int32)
    program = export(Module(pack), example, strict=strict).module()
    later = x, place < 17, torch.tensor([0, 2, 17], dtype=torch.int32)
    compare(program(*later), pack(*later))


@pytest.mark.parametrize("strict", [False, True])
def test_unbacked_batch_rotated(strict: bool) -> None:
    def rotate(x: Tensor, kept: Tensor, cos: Tensor, sin: Tensor) -> Any:
        return xattn.apply_rotary(x[kept], x[kept], cos, sin)

    x, angle = torch.randn(5, 20, 4, 8), torch.randn(20, 4)
    program = export(Module(rotate), (x, KEPT, angle.cos(), angle.sin()), strict=strict).module()
    compare(program(x, KEPT_LATER, angle.cos(), angle.sin()), rotate(x, KEPT_LATER, angle.cos(), angle.sin()))
