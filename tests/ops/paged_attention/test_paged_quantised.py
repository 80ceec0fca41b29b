"""`paged_attention` over quantised caches is that over the numbers that they stand for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ops.quantised import GRANULARITIES, STORAGES, numbers_of, room, scale_of
from support import extended
from torch import Tensor

import xattn
from xattn import AttentionOutput

both = pytest.mark.parametrize("backend", ["reference", "sdpa"])
# float32 kernels against float64. In 16 bits sdpa rounds what it reads once more.
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-6, torch.bfloat16: 3e-2, torch.float16: 4e-3}

TABLE = torch.tensor([[4, 1, 3], [0, 5, 2]], dtype=torch.int32)
LENGTHS = torch.tensor([11, 5], dtype=torch.int32)


def pages(storage: str, granularity: str, headdim: int = 16) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Caches of any bytes that are numbers, and scales."""
    generator = torch.Generator().manual_seed(6)
    caches = []
    for _ in range(2):
        stored = room(storage, headdim).view(torch.uint8)
        stored.random_(0, 256, generator=generator)
        if storage.startswith("e4m3"):
            stored[(stored & 127) >= 120] = 1  # neither NaN nor so large that a row sees one key alone
            stored[stored == 128] = 1
        caches.append(stored.view(STORAGES[storage][0]))
    shape, qmax = GRANULARITIES[granularity], STORAGES[storage][1]
    k_scale, v_scale = ((0.5 + torch.rand(shape, generator=generator)) / qmax for _ in range(2))
    return caches[0], caches[1], k_scale, v_scale


def as_numbers(storage: str, cache: Tensor, scale: Tensor) -> Tensor:
    """(num_blocks, block_size, nheads_k, headdim) float64, page by page: stored * scale in float32."""
    numbers = numbers_of(storage, cache).float()
    for block in range(6):
        for place in range(4):
            numbers[block, place] *= scale_of(scale, block, place)
    return numbers.double()


def check(storage: str, granularity: str, dtype: torch.dtype, backend: str, one_query: bool, **options: Any) -> None:
    k_cache, v_cache, k_scale, v_scale = pages(storage, granularity)
    generator = torch.Generator().manual_seed(7)
    q = torch.randn(2 if one_query else 7, 4, 16, generator=generator).to(dtype)
    starts = None if one_query else torch.tensor([0, 3, 7], dtype=torch.int32)
    rest: dict[str, Any] = {"block_table": TABLE, "seqlens_k": LENGTHS, "cu_seqlens_q": starts, **options}
    got: AttentionOutput = xattn.paged_attention(
        q, k_cache, v_cache, **rest, k_scale=k_scale, v_scale=v_scale, backend=backend, return_lse=True
    )
    numbers = as_numbers(storage, k_cache, k_scale), as_numbers(storage, v_cache, v_scale)
    want: AttentionOutput = xattn.paged_attention(q.double(), *numbers, **rest, backend="reference", return_lse=True)
    within = TOLERANCE[dtype]
    torch.testing.assert_close(got.out.double(), want.out, rtol=within, atol=within)
    torch.testing.assert_close(got.lse, want.lse, rtol=within, atol=within)


@both
@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_one_query_each(storage: str, granularity: str, backend: str) -> None:
    check(storage, granularity, torch.float32, backend, one_query=True)


@both
@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, *extended(torch.float16, torch.float64)])
def test_other_dtypes_of_queries(storage: str, dtype: torch.dtype, backend: str) -> None:
    check(storage, "token and head", dtype, backend, one_query=True)


@both
@pytest.mark.parametrize("storage", ["int4", "e4m3fn", *extended("int8", "e4m3fnuz")])
@pytest.mark.parametrize(
    "options",
    [
        {"window": (3, 0)},
        {"softcap": 2.0},
        {"sinks": torch.linspace(-1, 1, 4)},
        {"alibi_slopes": torch.linspace(0.1, 0.4, 4)},
        {"causal": False, "scale": 0.2},
    ],
    ids=str,
)
def test_several_queries_with_each_option(storage: str, options: dict[str, Any], backend: str) -> None:
    check(storage, "token and head", torch.float32, backend, one_query=False, **options)
    check(storage, "block and head", torch.float32, backend, one_query=True, **options)


@both
def test_a_long_context_in_several_gathers(backend: str) -> None:
    """Over 512 keys, beside one of 9, whose other pages have scales of NaN."""
    torch.manual_seed(0)
    k_cache, v_cache = torch.randint(-127, 128, (2, 90, 16, 2, 16), dtype=torch.int8)
    scale = torch.rand(2, 90, 16, 2) / 127
    table = torch.stack([torch.randperm(90)[:70] for _ in range(2)]).int()
    lengths = torch.tensor([1100, 9], dtype=torch.int32)
    unseen = torch.ones(90, 16, dtype=torch.bool)
    for row, length in zip(table, lengths.tolist(), strict=True):
        for j in range(length):
            unseen[row[j // 16], j % 16] = False
    scale[:, unseen] = torch.nan
    q = torch.randn(2, 4, 16)
    got = xattn.paged_attention(
        q, k_cache, v_cache, table, lengths, k_scale=scale[0], v_scale=scale[1], backend=backend
    )
    k, v = ((x.float() * y.unsqueeze(-1)).double() for x, y in ((k_cache, scale[0]), (v_cache, scale[1])))
    want = xattn.paged_attention(q.double(), k, v, table, lengths, backend="reference")
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-5)


@both
def test_heads_of_two_sizes_in_int4(backend: str) -> None:
    k_cache, _, k_scale, v_scale = pages("int4", "head", headdim=16)
    _, v_cache, _, _ = pages("int4", "head", headdim=8)
    q = torch.randn(2, 4, 16)
    got = xattn.paged_attention(q, k_cache, v_cache, TABLE, LENGTHS, k_scale=k_scale, v_scale=v_scale, backend=backend)
    numbers = as_numbers("int4", k_cache, k_scale), as_numbers("int4", v_cache, v_scale)
    want = xattn.paged_attention(q.double(), *numbers, TABLE, LENGTHS, backend="reference")
    assert got.shape == (2, 4, 8)
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-5)


def test_compiled() -> None:
    k_cache, v_cache, k_scale, v_scale = pages("int8", "token and head")
    q = torch.randn(2, 4, 16)

    def attend(q: Tensor) -> Tensor:
        return xattn.paged_attention(
            q, k_cache, v_cache, TABLE, LENGTHS, max_seqlen_k=12, k_scale=k_scale, v_scale=v_scale, backend="sdpa"
        )

    compiled = torch.compile(attend, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(q), attend(q))
