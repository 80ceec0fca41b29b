"""Caches in the orders that vendors' kernels want: the same numbers elsewhere, written and read."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support import extended
from torch import Tensor

import xattn
from xattn.cache import FormattedCache, PagedKVCache

DTYPES = [torch.bfloat16, torch.int8, *extended(torch.float8_e4m3fn, torch.float32, torch.float16, torch.uint8)]
formats = pytest.mark.parametrize("format", ["vllm", "asm"])
SLOTS = torch.tensor([37, 3, -1, 16, 80, 95, 31, 30])


def cache_of(dtype: torch.dtype, headdim: int = 32) -> Tensor:
    found = torch.arange(3 * 32 * 2 * headdim).view(3, 32, 2, headdim) % 113
    return found.to(torch.uint8).view(dtype) if dtype.itemsize == 1 else found.to(dtype)


def same(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one.contiguous().view(torch.uint8), other.contiguous().view(torch.uint8))


@formats
@pytest.mark.parametrize("dtype", DTYPES)
def test_where_each_number_lies(format: Any, dtype: torch.dtype) -> None:
    """By the definition of the format, and back."""
    cache, x = cache_of(dtype), 16 // dtype.itemsize
    for of in ("k", "v"):
        made = FormattedCache.made(cache, format, of)
        assert made.shape == cache.shape
        raw, memory = cache.view(torch.int8), made.memory.view(torch.int8)
        size = dtype.itemsize
        for block, place, head, column in ((0, 0, 0, 0), (2, 31, 1, 31), (1, 17, 0, 9), (2, 5, 1, 16)):
            if of == "k":
                at = block, head, column // x, place, column % x
            elif format == "vllm":
                at = block, head, column, place  # type: ignore[assignment]
            else:
                at = block, head, place // x, column, place % x
            last = at[-1] * size
            found = memory[at[:-1]][last : last + size]
            assert torch.equal(found, raw[block, place, head, column * size : (column + 1) * size])
        assert same(made.as_bytes().numbers().view(dtype), cache)


@formats
@pytest.mark.parametrize("dtype", DTYPES)
def test_writing_and_reading_are_those_of_a_plain_cache(format: Any, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    floating = dtype if dtype.is_floating_point and dtype.itemsize > 1 else torch.float32
    plain = PagedKVCache(3, 32, 2, 32, 64, dtype=dtype)
    other = PagedKVCache(3, 32, 2, 32, 64, dtype=dtype, format=format)
    k, v = torch.randn(8, 2, 32).to(floating), torch.randn(8, 2, 64).to(floating)
    for cache in (plain, other):
        cache.write(0, k, v, SLOTS)
    assert same(other.k[0].as_bytes().numbers(), plain.k[0])
    assert same(other.v[0].as_bytes().numbers(), plain.v[0])
    for scale, want in zip(other.scales(0).values(), plain.scales(0).values(), strict=True):
        assert torch.equal(scale, want)  # type: ignore[arg-type]
    table, lengths = torch.tensor([[2, 0], [1, 2]], dtype=torch.int32), torch.tensor([40, 9], dtype=torch.int32)
    q = torch.randn(2, 4, 32).to(floating)
    got, want = (
        xattn.paged_attention(q, each.k[0], each.v[0], table, lengths, **each.scales(0), backend="reference")
        for each in (other, plain)
    )
    assert torch.equal(got, want)


def test_a_shared_page_is_copied_and_a_new_one_cleared() -> None:
    cache = PagedKVCache(3, 16, 2, 32, dtype=torch.int8, format="asm")
    cache.allocate("a")
    k, v = torch.randn(2, 5, 2, 32)
    cache.write(0, k, v, torch.tensor(cache.append("a", 5)))
    before = cache.k[0].numbers()[cache.pages("a")[0]].clone()
    cache.fork("a", "b")
    cache.write(0, k[:1], v[:1], torch.tensor(cache.append("b", 1)))
    assert torch.equal(cache.k[0].numbers()[cache.pages("a")[0]], before)
    assert torch.equal(cache.k[0].numbers()[cache.pages("b")[0]][:5], before[:5])
    cache.free("b")
    cache.allocate("c")
    cache.append("c", 1)
    assert not cache.k[0].memory[cache.pages("c")[0]].any()


def test_a_backend_without_formats_says_how_to_go_on() -> None:
    cache = PagedKVCache(3, 16, 2, 32, format="vllm")
    given = cache.k[0], cache.v[0], torch.zeros(1, 1, dtype=torch.int32), torch.ones(1, dtype=torch.int32)
    with pytest.raises(xattn.UnsupportedError, match=r"format=vllm.*FormattedCache.numbers\(\) is a plain copy"):
        xattn.paged_attention(torch.randn(1, 2, 32), *given, backend="sdpa")


K, V = (FormattedCache.made(cache_of(torch.bfloat16), "asm", of) for of in ("k", "v"))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: FormattedCache(torch.zeros(3, 2, 4, 32, 4), "asm", "v"), None),
        (lambda: FormattedCache(torch.zeros(3, 32, 2, 32), "asm", "k"), r"^memory: got shape \(3, 32, 2, 32\)"),
        (lambda: FormattedCache(torch.zeros(3, 2, 8, 32, 8), "asm", "k"), r"block_size, 4\), contiguous"),
        (lambda: FormattedCache(torch.zeros(3, 2, 8, 32, 4)[::2], "asm", "k"), "^memory: got .*strides"),
        (lambda: FormattedCache(torch.zeros(3, 2, 32, 32), "hnd", "v"), "^format: got 'hnd'"),  # type: ignore[arg-type]
        (
            lambda: FormattedCache.made(torch.zeros(3, 6, 2, 32), "asm", "v"),
            "^cache: got block_size 6, want a multiple",
        ),
        (lambda: FormattedCache.made(torch.zeros(3, 6, 2, 30), "vllm", "k"), "^cache: got headdim 30, want a multiple"),
    ],
)
def test_memory_of_another_layout_than_declared(make: Any, said: str | None) -> None:
    if said is None:
        assert make().shape == (3, 16, 2, 32)
        return
    with pytest.raises(xattn.InvalidArgumentError, match=said):
        make()


@pytest.mark.parametrize(
    ("k_cache", "v_cache", "said"),
    [
        (K, V.numbers(), "^v_cache: got Tensor"),
        (V, K, "^k_cache: got one of v"),
        (K, FormattedCache.made(cache_of(torch.bfloat16), "vllm", "v"), '^v_cache: got format "vllm"'),
        (K, FormattedCache.made(cache_of(torch.bfloat16)[:2], "asm", "v"), "^v_cache: got num_blocks 2"),
    ],
    ids=["one plain", "turned", "two formats", "two sizes"],
)
def test_caches_that_contradict_each_other_write_nothing(k_cache: Any, v_cache: Any, said: str) -> None:
    before = K.memory.clone()
    k, v = torch.ones(2, 2, 2, 32).bfloat16()
    with pytest.raises(xattn.InvalidArgumentError, match=said):
        xattn.write_kv(k, v, k_cache, v_cache, torch.tensor([0, 1]))
    assert torch.equal(K.memory, before)
