"""How sdpa cuts packed sequences and pages for torch's flash kernel on CUDA, over a stand-in of the kernel on the CPU:
against `reference`, with NaN wherever nobody may look."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from plugins.sdpa import flash_standin
from torch import Tensor
from xattn_sdpa.attention.engine import Settings
from xattn_sdpa.paged_attention import flash as pages
from xattn_sdpa.paged_attention.store import Store
from xattn_sdpa.varlen_attention import flash

import xattn
from xattn import PagedBatch

# Of any arguments, for type checkers.
varlen: Any = xattn.varlen_attention
paged: Any = xattn.paged_attention


@pytest.fixture(autouse=True)
def _on_the_standin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flash, "_forward", flash_standin.forward)
    monkeypatch.setattr(flash, "_backward", flash_standin.backward)


SINKS = torch.linspace(-1, 1, 4)
# Empty ones, more queries than keys, more keys than queries, one query.
QUERIES, KEYS = (5, 0, 20, 3, 1, 65, 7), (7, 4, 3, 0, 40, 70, 7)
OPTIONS: dict[str, dict[str, Any]] = {
    "full": {},
    "causal": {"causal": True},
    "window": {"window": (3, 2)},
    "left alone": {"window": (2, None)},
    "right alone": {"window": (None, 4)},
    "right, past a tile": {"window": (None, 129)},
    "causal window": {"window": (6, 0)},
    "no side hides": {"window": (2**40, 2**40)},
    "wide": {"window": (70, 64)},
    "negative scale": {"causal": True, "scale": -0.3},
    "scale 0": {"causal": True, "scale": 0.0},
    "sinks": {"causal": True, "sinks": SINKS},
}


def cu(lengths: tuple[int, ...]) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).int()


def settings_of(options: dict[str, Any]) -> Settings:
    left, right = options.get("window", (None, None))
    right = 0 if options.get("causal") else right
    return Settings(left, right, None, options.get("scale", 0.25), None)


def packed(queries: tuple[int, ...], keys: tuple[int, ...], window: Any, padding: int) -> list[Tensor]:
    """q, k, v with NaN in padding, and in keys that no query sees."""
    generator = torch.Generator().manual_seed(1)
    sizes = ((sum(queries), 4, 16), (sum(keys), 2, 16), (sum(keys), 2, 12))
    made = [torch.randn(size, generator=generator, dtype=torch.float64) for size in sizes]
    at = 0
    for n, m in zip(queries, keys, strict=True):
        unseen = m if n == 0 else 0 if window is None or window[0] is None else max(0, m - n - window[0])
        for x in made[1:]:
            x[at : at + unseen] = torch.nan
        at += m
    return [torch.cat((x, x.new_full((padding, *x.shape[1:]), torch.nan))) for x in made]


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("lengths", [(QUERIES, KEYS), (KEYS, QUERIES), (KEYS, None)], ids=["mixed", "turned", "shared"])
def test_packed(lengths: tuple[Any, Any], name: str) -> None:
    check(lengths, name, 3)


@pytest.mark.parametrize("lengths", [((0, 0), (3, 0)), ((2, 1), (0, 0)), ((1, 0, 1), (5, 3, 9))])
@pytest.mark.parametrize("padding", [0, 1, 300])
def test_few_queries_and_much_padding(lengths: tuple[Any, Any], padding: int) -> None:
    check(lengths, "causal", padding)


@pytest.mark.parametrize("name", ["left alone", "right alone", "right, past a tile"])
def test_many_more_queries_than_keys(name: str) -> None:
    """A side past every key may hide some from queries that stand before them."""
    check(((200, 3), (4, 2)), name, 0)


def check(lengths: tuple[Any, Any], name: str, padding: int) -> None:
    options = {"scale": 0.25, **OPTIONS[name]}
    queries, keys = lengths[0], lengths[1] or lengths[0]
    q, k, v = packed(queries, keys, options.get("window"), padding)
    ends_q = cu(queries)
    ends_k = ends_q if lengths[1] is None else cu(keys)
    bounds = (max(queries), max(keys))
    sinks = options.get("sinks")
    leaves = [x.requires_grad_() for x in (q, k, v)] + ([] if sinks is None else [sinks.double().requires_grad_()])
    given = {**options, "sinks": None if sinks is None else leaves[3]}
    want = varlen(*leaves[:3], ends_q, ends_k, **given, return_lse=True, backend="reference")
    tensors = (q.detach(), k.detach(), v.detach(), sinks, None, ends_q, ends_k, None)
    out, lse = flash.forward(tensors, bounds, settings_of(options))
    torch.testing.assert_close(out, want.out.detach(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(lse, want.lse.detach(), rtol=1e-5, atol=1e-5)
    assert out.is_contiguous()
    dout = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape)
    dlse = torch.linspace(-1, 1, lse.numel()).view(lse.shape)
    unread = torch.cat([torch.arange(start, end) for start, end in dead(queries, keys, options, padding)])
    grads = torch.autograd.grad(want, leaves, (dout, dlse), retain_graph=True)
    dout[unread], dlse[:, unread[unread >= sum(queries)]] = torch.nan, torch.nan
    found = flash.backward(dout, dlse, out, lse, tensors, bounds, settings_of(options))
    for got, grad in zip(found, grads, strict=False):
        assert got is not None
        torch.testing.assert_close(got, grad.to(got.dtype), rtol=1e-5, atol=1e-5)
        assert got.is_contiguous()


def dead(queries: Any, keys: Any, options: dict[str, Any], padding: int) -> list[tuple[int, int]]:
    """Rows whose gradient nobody reads: padding, and queries that see no key, where no sink is in the way."""
    found = [(sum(queries), sum(queries) + padding)]
    if options.get("sinks") is not None:
        return found
    right = 0 if options.get("causal") else (options.get("window") or (None, None))[1]
    at = 0
    for n, m in zip(queries, keys, strict=True):
        found.append((at, at + (n if m == 0 else 0 if right is None else max(0, min(n, n - m - right)))))
        at += n
    return found


@pytest.mark.parametrize("one_query", [True, False])
@pytest.mark.parametrize(
    ("name", "block_size"),
    [*((name, 16) for name in OPTIONS), ("causal window", 4), ("window", 1), ("window", 60), ("causal", 60)],
)
def test_pages(name: str, block_size: int, one_query: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "_BYTES", 40_000)  # some sequences at a time
    options = {"scale": 0.25, "causal": False, **OPTIONS[name]}
    keys, queries = (7, 40, 0, 90, 7, 1, 0), (1,) * 7 if one_query else (9, 3, 2, 20, 7, 1, 0)
    left = (options.get("window") or (None, None))[0]
    counts = [-(-n // block_size) for n in keys]
    generator = torch.Generator().manual_seed(2)
    caches = [torch.full((sum(counts) + 3, block_size, 2, n), torch.nan, dtype=torch.float64) for n in (16, 12)]
    table = torch.randint(-(2**31), 2**31 - 1, (len(keys), max(counts) + 2), generator=generator).int()
    free = torch.randperm(sum(counts) + 3, generator=generator).tolist()
    for b, length in enumerate(keys):
        seen = 0 if left is None else max(0, length - queries[b] - left)
        for j in range(seen if queries[b] else length, length):
            if j == seen or j % block_size == 0:
                table[b, j // block_size] = free.pop()
            for cache in caches:
                place = cache[int(table[b, j // block_size]), j % block_size]
                place.copy_(torch.randn(place.shape, generator=generator))
    total = sum(queries) + (0 if one_query else 130)
    q = torch.randn(total, 4, 16, generator=generator, dtype=torch.float64)
    q[sum(queries) :] = torch.nan
    batch = PagedBatch(
        table, torch.tensor(keys).int(), None if one_query else cu(queries), max_seqlen_q=None if one_query else 25,
        max_seqlen_k=100,
    )  # fmt: skip
    k_cache, v_cache = caches
    want = paged(q, k_cache, v_cache, batch, **options, return_lse=True, backend="reference")
    k_store, v_store = (Store(cache, None, q.dtype) for cache in caches)
    out, lse = pages.forward(q, k_store, v_store, batch, options.get("sinks"), settings_of(options))
    torch.testing.assert_close(out, want.out, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(lse, want.lse, rtol=1e-5, atol=1e-5)
