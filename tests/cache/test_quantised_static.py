"""A quantised StaticKVCache: rows that are pages."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ops.quantised import STORAGES
from torch import Tensor

import xattn
from xattn.cache import PagedKVCache, StaticKVCache

BATCH, ROOM, NHEADS_K, HEADDIM = 2, 12, 2, 32
# rms error of Gaussian numbers that are stored, over theirs. That of attention is of its size: errors of keys and of
# values add up, and those of values that are averaged cancel in part.
RMS = {"int8": 0.008, "int4": 0.14, "e4m3fn": 0.03, "e4m3fnuz": 0.03}


def cache_of(storage: str, scale_of: Any = "token_head") -> StaticKVCache:
    return StaticKVCache(BATCH, ROOM, NHEADS_K, HEADDIM, dtype=STORAGES[storage][0], scale_of=scale_of)


def tokens(count: int, seed: int) -> Tensor:
    return torch.randn(2, BATCH, count, NHEADS_K, HEADDIM, generator=torch.Generator().manual_seed(seed))


def attend(cache: StaticKVCache, q: Tensor) -> Tensor:
    found = xattn.paged_attention(q.flatten(0, 1), cache.k, cache.v, cache.paged(q.shape[1]), **cache.scales())
    out: Tensor = found.unflatten(0, q.shape[:2])
    return out


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("scale_of", ["token", "token_head"])
def test_a_prompt_and_a_step_are_near_attention_over_the_numbers(storage: str, scale_of: str) -> None:
    cache = cache_of(storage, scale_of)
    prompt, step = tokens(7, 0), tokens(1, 1)
    q = torch.randn(BATCH, 8, 4, HEADDIM, generator=torch.Generator().manual_seed(2))
    cache.append(*prompt)
    got = [attend(cache, q[:, :7])]
    cache.append(*step)
    got.append(attend(cache, q[:, 7:]))
    k, v = torch.cat((prompt, step), 2)
    want = xattn.attention(q, k, v, causal=True)
    error = (torch.cat(got, 1) - want).square().mean().sqrt() / want.square().mean().sqrt()
    assert error < 2 * RMS[storage]


@pytest.mark.parametrize("storage", STORAGES)
def test_it_holds_what_a_paged_cache_holds(storage: str) -> None:
    """Of rows of different lengths, after one was reset."""
    static, paged = cache_of(storage), PagedKVCache(BATCH, ROOM, NHEADS_K, HEADDIM, dtype=STORAGES[storage][0])
    k, v = tokens(3, 0)
    static.append(k, v)
    static.reset(1)
    assert static.k_scale is not None
    assert (static.k_scale[1] == 1).all()
    static.append(k, v)
    assert static.lengths == [6, 3]
    slots = torch.tensor([0, 1, 2, 3, 4, 5, ROOM, ROOM + 1, ROOM + 2])
    order = torch.tensor([0, 1, 2, 0, 1, 2, 3, 4, 5])
    paged.write(0, k.flatten(0, 1)[order], v.flatten(0, 1)[order], slots)
    assert torch.equal(static.k.view(torch.uint8), paged.k[0].view(torch.uint8))
    assert torch.equal(static.v.view(torch.uint8), paged.v[0].view(torch.uint8))
    assert torch.equal(static.scales()["k_scale"], paged.scales(0)["k_scale"])


def test_scales_that_the_caller_sets_stay() -> None:
    cache = cache_of("int8", "head")
    for scale in cache.scales().values():
        assert isinstance(scale, Tensor)
        scale.fill_(0.05)
    k, v = tokens(3, 0).clamp(-6, 6)
    cache.append(k, v)
    assert (cache.scales()["v_scale"] == 0.05).all()
    assert (cache.v[:, :3].float() * 0.05 - v).abs().max() <= 0.026


@pytest.mark.parametrize(
    ("k", "v", "said"),
    [
        (torch.zeros(2, 1, 2, 16), torch.zeros(2, 1, 2, 32), "k: got .*, want"),
        (torch.zeros(2, 1, 2, 32), torch.zeros(2, 1, 2, 32).half(), "v: got .*float16"),
        (torch.zeros(2, 1, 2, 32).int(), torch.zeros(2, 1, 2, 32).int(), "k: got int32"),
        (torch.zeros(2, 13, 2, 32), torch.zeros(2, 13, 2, 32), "k: got 13 keys after 0 of row 0"),
    ],
    ids=["headdim", "dtypes", "integers", "no room"],
)
def test_what_is_refused_writes_nothing(k: Tensor, v: Tensor, said: str) -> None:
    cache = cache_of("int4")
    with pytest.raises(xattn.InvalidArgumentError, match=f"^{said}"):
        cache.append(k, v)
    assert not cache.k.any()
    assert cache.lengths == [0, 0]
    assert (cache.scales()["k_scale"] == 1).all()


def test_what_is_not_quantised_is_pages_too() -> None:
    cache = StaticKVCache(BATCH, ROOM, NHEADS_K, HEADDIM)
    k, v = tokens(5, 0)
    cache.append(k, v)
    q = torch.randn(BATCH, 5, 4, HEADDIM, generator=torch.Generator().manual_seed(2))
    want = xattn.attention(q, k, v, causal=True)
    torch.testing.assert_close(attend(cache, q), want, rtol=1e-5, atol=1e-5)
    assert cache.scales() == {}
