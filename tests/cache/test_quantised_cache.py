"""A quantised PagedKVCache: scales of what is written, pages shared and copied with their scales."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ops.quantised import STORAGES
from torch import Tensor

import xattn
from xattn.cache import PagedKVCache

NHEADS, NHEADS_K, HEADDIM = 4, 2, 32
# rms error of what is stored over that of Gaussian numbers, measured: 0.65 %, 11.7 % and 2.6 %.
RMS = {"int8": 0.008, "int4": 0.14, "e4m3fn": 0.03, "e4m3fnuz": 0.03}


def cache_of(storage: str, scale_of: Any = "token_head", blocks: int = 8) -> PagedKVCache:
    return PagedKVCache(blocks, 4, NHEADS_K, HEADDIM, num_layers=2, dtype=STORAGES[storage][0], scale_of=scale_of)


def tokens(count: int, seed: int) -> Tensor:
    """Keys and values of very different sizes, so that a scale of the wrong token shows."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, count, NHEADS_K, HEADDIM, generator=generator) * torch.logspace(-2, 2, count)[:, None, None]


def append(cache: PagedKVCache, sequence: str, kv: Tensor, layer: int = 0) -> None:
    slots = torch.tensor(cache.append(sequence, kv.shape[1]))
    cache.write(layer, kv[0], kv[1], slots)


def read(cache: PagedKVCache, sequence: str, layer: int = 0) -> list[Tensor]:
    """What a sequence's keys and values are by attention that sees one key at a time."""
    table, lengths, _ = cache.lists([sequence])
    assert cache.v_scale is not None
    values = []
    for j in range(lengths[0]):
        page, place = table[0][j // 4], j % 4
        scale = cache.v_scale[layer]
        one = scale[page : page + 1, place : place + 1] if scale.dim() == 3 else scale
        values.append(
            xattn.paged_attention(
                torch.zeros(1, NHEADS_K, HEADDIM), cache.k[layer][page : page + 1, place : place + 1],
                cache.v[layer][page : page + 1, place : place + 1], torch.zeros(1, 1, dtype=torch.int32),
                torch.ones(1, dtype=torch.int32), k_scale=torch.ones(()), v_scale=one, backend="reference",
            )[0]
        )  # fmt: skip
    return values


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda k, v, slots: (k[..., :8].contiguous(), v, slots), "^k_cache: got headdim 32, want 8"),
        (lambda k, v, slots: (k, v[..., :8].contiguous(), slots), "^v_cache: got headdim 32, want 8"),
        (lambda k, v, slots: (k, v[:, :1], slots), "^v: got nheads_k 1"),
        (lambda k, v, slots: (k, v.half(), slots), "^v: got .*float16"),
        (lambda k, v, slots: (k.int(), v.int(), slots), "^k: got .*int32"),
        (lambda k, v, slots: (k, None, slots), "^v: got None"),
        (lambda k, v, slots: (k, v, slots + 32), "^slots: got 35 at 0"),
        (lambda k, v, slots: (k, v, slots[:1].repeat(2)), "^slots: got "),
        (lambda k, v, slots: (k, v, slots[:1]), "^slots: got shape"),
    ],
    ids=["headdim of k", "headdim of v", "heads", "dtypes", "ints", "None", "past the end", "twice", "too few"],
)
def test_a_write_that_is_refused_leaves_keys_and_scales_alone(spoil: Any, said: str) -> None:
    cache = cache_of("int8")
    cache.allocate("a")
    append(cache, "a", tokens(3, 0))
    assert cache.k_scale is not None
    assert cache.v_scale is not None
    everything = (*cache.k, *cache.v, *cache.k_scale, *cache.v_scale)
    before = [x.clone() for x in everything]
    with pytest.raises(xattn.InvalidArgumentError, match=said):
        cache.write(0, *spoil(*tokens(2, 1), torch.tensor(cache.append("a", 2))))
    # Of a page that `append` handed out, nothing but that it is cleared.
    assert all(torch.equal(x, y) for x, y in zip(everything, before, strict=True))


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("scale_of", ["token", "token_head"])
def test_what_is_written_is_there_within_its_storages_error(storage: str, scale_of: str) -> None:
    cache = cache_of(storage, scale_of)
    cache.allocate("a")
    kv = tokens(9, 0)
    append(cache, "a", kv, layer=1)
    for j, value in enumerate(read(cache, "a", layer=1)):
        error = (value - kv[1, j]).square().mean().sqrt() / kv[1, j].square().mean().sqrt()
        assert error < 2 * RMS[storage], j
    assert all((scale == 1).all() for scale in (cache.k_scale or [])[:1])


def test_attention_over_it_is_near_attention_over_the_numbers() -> None:
    cache = cache_of("int8")
    cache.allocate("a")
    kv = tokens(9, 0).div(torch.logspace(-2, 2, 9)[:, None, None])
    append(cache, "a", kv)
    q = torch.randn(1, NHEADS, HEADDIM, generator=torch.Generator().manual_seed(1))
    table, lengths, _ = cache.lists(["a"])
    assert cache.k_scale is not None
    assert cache.v_scale is not None
    got = xattn.paged_attention(
        q, cache.k[0], cache.v[0], torch.tensor(table, dtype=torch.int32), torch.tensor(lengths, dtype=torch.int32),
        k_scale=cache.k_scale[0], v_scale=cache.v_scale[0],
    )  # fmt: skip
    want = xattn.attention(q[None], *kv[:, None])[0]
    assert (got - want).abs().max() < 0.02


def test_a_shared_page_is_copied_with_its_scales() -> None:
    cache = cache_of("int8")
    cache.allocate("a")
    append(cache, "a", tokens(6, 0))
    before = read(cache, "a")
    cache.fork("a", "b")
    append(cache, "b", tokens(1, 5) * 1e3)
    assert all(map(torch.equal, read(cache, "a"), before))
    assert all(map(torch.equal, read(cache, "b")[:6], before))


def test_a_page_that_is_handed_out_again_has_no_old_scale() -> None:
    cache = cache_of("int8", blocks=1)
    cache.allocate("a")
    append(cache, "a", tokens(4, 0) * 1e6)
    cache.free("a")
    cache.allocate("b")
    cache.append("b", 1)
    assert cache.k_scale is not None
    assert (cache.k_scale[0] == 1).all()
    assert (cache.k[0] == 0).all()


def test_a_slot_of_minus_one_writes_neither_number_nor_scale() -> None:
    cache = cache_of("int8")
    cache.allocate("a")
    cache.append("a", 2)
    k, v = tokens(2, 0)
    cache.write(0, k, v, torch.tensor([-1, -1]))
    assert cache.k_scale is not None
    assert (cache.k[0] == 0).all()
    assert (cache.k_scale[0] == 1).all()


@pytest.mark.parametrize("scale_of", ["tensor", "head", "block_head"])
def test_scales_that_the_caller_sets_stay(scale_of: str) -> None:
    cache = cache_of("int8", scale_of)
    assert cache.k_scale is not None
    assert cache.v_scale is not None
    cache.allocate("a")
    slots = torch.tensor(cache.append("a", 3))
    for scale in (*cache.k_scale, *cache.v_scale):
        scale.fill_(0.05)
    kv = tokens(3, 0).clamp(-6, 6)
    cache.write(0, kv[0], kv[1], slots)
    pages = cache.pages("a")
    stored = cache.v[0][pages].flatten(0, 1)[:3].float() * 0.05
    assert (stored - kv[1]).abs().max() <= 0.026


def test_memory_of_a_token_with_its_scales() -> None:
    """Over bfloat16, headdim 128, a scale a head of a token: 0.52 of it for 8 bits, 0.27 for 4."""
    for storage, share in (("e4m3fn", 0.52), ("int8", 0.52), ("int4", 0.27)):
        cache = PagedKVCache(2, 16, 8, 128, dtype=STORAGES[storage][0])
        used = sum(x.nbytes for x in (*cache.k, *cache.v, *(cache.k_scale or ()), *(cache.v_scale or ())))
        assert used / (2 * 2 * 16 * 8 * 128 * 2) <= share


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"dtype": torch.float8_e5m2}, "dtype: got torch.float8_e5m2"),
        ({"dtype": torch.int32}, "dtype: got torch.int32"),
        ({"dtype": torch.uint8, "headdim": 31}, "headdim: got 31, want an even number"),
        ({"dtype": torch.int8, "scale_of": "channel"}, "scale_of: got 'channel'"),
    ],
    ids=str,
)
def test_a_cache_that_nobody_could_read_is_not_made(given: dict[str, Any], said: str) -> None:
    sizes = {"num_blocks": 2, "block_size": 4, "nheads_k": 2, "headdim": 32}
    with pytest.raises(xattn.InvalidArgumentError, match=said):
        PagedKVCache(**{**sizes, **given})
