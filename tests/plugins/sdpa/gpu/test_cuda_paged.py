"""paged_attention by sdpa on an NVIDIA GPU, against float64.

Run as `python -m pytest -q tests/plugins/sdpa/gpu`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from plugins.sdpa.gpu.gpu_calls import needs_cuda, randn
from plugins.sdpa.gpu.sequence_calls import attended, captured, cu, joined, near, no_sync
from torch import Tensor

import xattn
from xattn import PagedBatch

pytestmark = needs_cuda
attend: Any = xattn.paged_attention

KEYS = (7, 300, 0, 1500, 64, 1, 129)
QUERIES: dict[str, tuple[int, ...] | None] = {
    "one": None,
    "mixed": (9, 1, 3, 200, 64, 1, 0),
    "ones": (1, 1, 1, 0, 1, 1, 1),
}
OPTIONS: dict[str, dict[str, Any]] = {
    "causal": {},
    "full": {"causal": False},
    "window": {"window": (50, 3), "causal": False},
    "causal window": {"window": (100, 0)},
    "wide window": {"window": (2**40, None)},
    "negative scale": {"scale": -0.1},
    "sinks": {"sinks": torch.linspace(-1, 3, 4)},
}


class Pool:
    """Two caches with pages in no order and NaN wherever no sequence has a key; of pages that nobody has, the table has
    any number."""

    def __init__(
        self, block_size: int, keys: Sequence[int], nheads_k: int = 2, headdims: tuple[int, int] = (64, 64),
        dtype: torch.dtype = torch.bfloat16, apart: bool = True, odd: bool = False,
    ) -> None:  # fmt: skip
        counts = [-(-n // block_size) for n in keys]
        blocks = sum(counts) + 3
        if apart:
            sizes = [(blocks, block_size, nheads_k, d + odd) for d in headdims]
            self.k, self.v = (torch.full(size, torch.nan, dtype=dtype, device="cuda")[..., odd:] for size in sizes)
        else:
            both = torch.full((blocks, 2, block_size, nheads_k, headdims[0]), torch.nan, dtype=dtype, device="cuda")
            self.k, self.v = both.unbind(1)
        generator = torch.Generator().manual_seed(0)
        free = torch.randperm(blocks, generator=generator)
        self.table = torch.randint(-(2**31), 2**31 - 1, (len(keys), max(counts) + 2), generator=generator).int().cuda()
        self.keys: list[tuple[Tensor, Tensor]] = []
        for b, (length, count) in enumerate(zip(keys, counts, strict=True)):
            own, free = free[:count].cuda(), free[count:]
            self.table[b, :count] = own.int()
            at = torch.arange(length, device="cuda")
            new = [randn(length, *x.shape[2:], dtype=dtype, seed=9 * b + i) for i, x in enumerate((self.k, self.v))]
            for cache, values in zip((self.k, self.v), new, strict=True):
                cache[own[at // block_size], at % block_size] = values
            self.keys.append((new[0], new[1]))


def right(q: Tensor, pool: Pool, queries: Sequence[int] | None, **options: Any) -> tuple[Tensor, Tensor]:
    own = [1] * len(pool.keys) if queries is None else queries
    options = {"causal": True, **options}
    parts = [attended(rows, *kv, **options) for rows, kv in zip(q[: sum(own)].split(list(own)), pool.keys, strict=True)]
    return joined(parts, len(q) - sum(own))


def check(name: str, kind: str, pool: Pool, keys: Sequence[int] = KEYS) -> None:
    queries = QUERIES[kind]
    options = {key: x.cuda() if isinstance(x, Tensor) else x for key, x in OPTIONS[name].items()}
    total = len(keys) if queries is None else sum(queries) + 7
    q = randn(total, 4, pool.k.shape[3], dtype=pool.k.dtype, seed=99)
    bounds: dict[str, Any] = {"max_seqlen_k": max(keys) + 5}
    if queries is not None:
        q[sum(queries) :] = torch.nan
        bounds |= {"cu_seqlens_q": cu(queries), "max_seqlen_q": max(queries)}
    lengths = torch.tensor(keys, dtype=torch.int32, device="cuda")
    out, lse = attend(q, pool.k, pool.v, pool.table, lengths, **bounds, **options, return_lse=True, backend="sdpa")
    want = right(q, pool, queries, **options)
    near("out", out, want[0])
    near("lse", lse, want[1], 1e-3)


@pytest.mark.parametrize("block_size", [1, 16, 60, 256])
@pytest.mark.parametrize("kind", QUERIES)
@pytest.mark.parametrize("name", OPTIONS)
def test_values(name: str, kind: str, block_size: int) -> None:
    check(name, kind, Pool(block_size, KEYS))


@pytest.mark.parametrize("kind", QUERIES)
@pytest.mark.parametrize("how", [
    {"apart": False}, {"odd": True}, {"nheads_k": 4}, {"nheads_k": 1}, {"dtype": torch.float16},
    {"headdims": (60, 60)}, {"headdims": (64, 40)}, {"headdims": (192, 128)}, {"headdims": (256, 256)},
    {"headdims": (60, 60), "odd": True}, {"headdims": (1, 1)},
], ids=str)  # fmt: skip
def test_caches(how: dict[str, Any], kind: str) -> None:
    for name in ("causal", "causal window", "sinks"):
        check(name, kind, Pool(16, KEYS, **how))


def test_some_sequences_at_a_time() -> None:
    """What a step of one query each gathers at once is bounded."""
    keys = (16_000, 3, 0, 9_000) * 6
    pool = Pool(64, keys, nheads_k=4, headdims=(256, 256))
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    q = randn(24, 4, 256, seed=99)
    lengths = torch.tensor(keys, dtype=torch.int32, device="cuda")
    out = attend(q, pool.k, pool.v, pool.table, lengths, max_seqlen_k=20_000, backend="sdpa")
    assert torch.cuda.max_memory_allocated() - before < 1.1 * 2**30
    near("out", out, right(q, pool, None)[0])


def test_nothing_is_read_from_the_device() -> None:
    pool = Pool(16, KEYS)
    lengths = torch.tensor(KEYS, dtype=torch.int32, device="cuda")
    ends = cu(QUERIES["mixed"] or ())
    for q, given in ((randn(7, 4, 64), {}), (randn(300, 4, 64), {"cu_seqlens_q": ends, "max_seqlen_q": 200})):
        call = {"max_seqlen_k": 1500, **given, "window": (60, 0), "sinks": torch.ones(4, device="cuda")}
        attend(q, pool.k, pool.v, pool.table, lengths, **call, backend="sdpa")
        with no_sync():
            attend(q, pool.k, pool.v, pool.table, lengths, **call, backend="sdpa")


@pytest.mark.parametrize("name", ["causal", "causal window", "sinks"])
@pytest.mark.parametrize("kind", ["one", "mixed"])
def test_a_graph_replays_with_other_lengths_and_tables(kind: str, name: str) -> None:
    options = {key: x.cuda() if isinstance(x, Tensor) else x for key, x in OPTIONS[name].items()}
    steps = [KEYS, (1, 1, 1, 1, 1, 1, 1), (2000, 0, 5, 16, 17, 900, 3)]
    counts: list[tuple[int, ...]] = [(9, 1, 3, 200, 64, 1, 0), (1, 0, 1, 1, 0, 1, 1), (5, 2, 0, 16, 1, 250, 3)]
    pools = [Pool(16, keys) for keys in steps]
    blocks = max(len(pool.k) for pool in pools)
    caches = [torch.full((blocks, 16, 2, 64), torch.nan, dtype=torch.bfloat16, device="cuda") for _ in range(2)]
    table = torch.zeros(7, max(pool.table.shape[1] for pool in pools), dtype=torch.int32, device="cuda")
    lengths, ends = torch.zeros(7, dtype=torch.int32, device="cuda"), cu(counts[0])
    q = randn(7 if kind == "one" else 300, 4, 64)
    if kind == "one":
        batch = PagedBatch(table, lengths, max_seqlen_k=2000)
    else:
        batch = PagedBatch(table, lengths, ends, max_seqlen_q=256, max_seqlen_k=2000)
    graph, (out, lse) = captured(lambda: attend(q, *caches, batch, **options, return_lse=True, backend="sdpa"))
    for seed, (pool, keys, queries) in enumerate(zip(pools, steps, counts, strict=True)):
        for cache, own in zip(caches, (pool.k, pool.v), strict=True):
            cache.fill_(torch.nan)[: len(own)] = own
        table[:, : pool.table.shape[1]] = pool.table
        lengths.copy_(torch.tensor(keys))
        ends.copy_(cu(queries))
        q.copy_(randn(*q.shape, seed=seed + 50))
        graph.replay()
        torch.cuda.synchronize()
        want = right(q, pool, None if kind == "one" else queries, **options)
        near("out", out, want[0])
        near("lse", lse, want[1], 1e-3)


def test_a_compiled_step_serves_other_lengths() -> None:
    torch._dynamo.reset()
    compiled: Any = torch.compile(attend, fullgraph=True, dynamic=True)
    for keys in (KEYS, (300, 5, 900)):
        pool = Pool(16, keys)
        q = randn(len(keys), 4, 64, seed=3)
        lengths = torch.tensor(keys, dtype=torch.int32, device="cuda")
        out = compiled(q, pool.k, pool.v, pool.table, lengths, max_seqlen_k=max(keys), backend="sdpa")
        near("out", out, right(q, pool, None)[0])
