"""PagedKVCache against lists of the keys that each sequence was given, and what happens where there is no room."""

from __future__ import annotations

import random
from collections.abc import Hashable, Sequence

import pytest
import torch
from torch import Tensor

import xattn

BLOCK = 4


def cache(num_blocks: int = 8, layers: int = 1) -> xattn.PagedKVCache:
    return xattn.PagedKVCache(num_blocks, BLOCK, 2, 8, 6, layers=layers)


def written(
    pool: xattn.PagedKVCache, counts: dict[Hashable, int], held: dict[Hashable, list[Tensor]] | None = None
) -> None:
    """Append random keys, of which each value is the first part, and note them in `held`."""
    slots = pool.append(counts)
    for k_cache, v_cache in zip(pool.k, pool.v, strict=True):
        k = torch.randn(len(slots), 2, 8)
        xattn.write_kv(k, k[..., :6].contiguous(), k_cache, v_cache, slots)
    if held is not None:
        for name, part in zip(counts, k.split(list(counts.values())), strict=True):
            held.setdefault(name, []).extend(part)


def keys(pool: xattn.PagedKVCache, name: Hashable, layer: int = 0) -> Tensor:
    return pool.k[layer][pool.pages(name)].flatten(0, 1)[: pool.length(name)]


def fits(pool: xattn.PagedKVCache, counts: dict[Hashable, int], held: dict[Hashable, list[Tensor]]) -> bool:
    try:
        written(pool, counts, held)
    except xattn.CacheFullError:
        return False
    return True


def state(pool: xattn.PagedKVCache, names: Sequence[Hashable]) -> object:
    return pool.free_pages, [(pool.length(name), pool.pages(name)) for name in names], pool.k[0].tolist()


def test_slots_are_the_next_places_of_each_sequence() -> None:
    pool = cache()
    for name in ("a", "b"):
        pool.allocate(name)
    assert pool.append({"a": 3, "b": 5}).tolist() == [0, 1, 2, 4, 5, 6, 7, 8]
    assert pool.append({"b": 0, "a": 2}).tolist() == [3, 12]
    assert (pool.pages("a"), pool.pages("b"), pool.length("a"), pool.free_pages) == ([0, 3], [1, 2], 5, 4)


def test_any_history_holds_what_was_written() -> None:
    """Random steps: each sequence has the keys that it was given and those of its prefix, in every step of many."""
    chance = random.Random(0)
    torch.manual_seed(0)
    pool, held = cache(40), dict[Hashable, list[Tensor]]()
    for step in range(200):
        names = list(held)
        what = chance.random()
        if what < 0.3 or not names:
            pool.allocate(step)
            held[step] = []
        elif what < 0.5:
            source = chance.choice(names)
            length = chance.randint(0, len(held[source]))
            pool.fork(source, step, length)
            held[step] = held[source][:length]
        elif what < 0.65:
            name = chance.choice(names)
            pool.free(name)
            del held[name]
        else:
            counts: dict[Hashable, int] = {name: chance.randint(0, 5) for name in chance.sample(names, len(names) // 2)}
            before = state(pool, names)
            if not fits(pool, counts, held):
                assert state(pool, names) == before
        for name, own in held.items():
            assert pool.length(name) == len(own)
            if own:
                assert torch.equal(keys(pool, name), torch.stack(own))
    for name in list(held):
        pool.free(name)
    assert pool.free_pages == 40


def test_a_fork_shares_pages_and_copies_the_last_one_when_it_grows() -> None:
    pool = cache(layers=2)
    pool.allocate("a")
    written(pool, {"a": 6})
    pool.fork("a", "b")
    assert pool.pages("b") == pool.pages("a")
    assert pool.free_pages == 6
    before = [keys(pool, "a", layer).clone() for layer in range(2)]
    written(pool, {"b": 1})
    assert pool.pages("b")[0] == pool.pages("a")[0]
    assert pool.pages("b")[1] != pool.pages("a")[1]
    for layer in range(2):
        assert torch.equal(keys(pool, "a", layer), before[layer])
        assert torch.equal(keys(pool, "b", layer)[:6], before[layer])
    pool.free("a")
    assert torch.equal(keys(pool, "b", 1)[:6], before[1])


def test_of_all_that_share_a_page_the_last_one_keeps_it() -> None:
    pool = cache(2)
    pool.allocate("a")
    written(pool, {"a": 2})
    pool.fork("a", "b")
    written(pool, {"a": 1, "b": 1})
    assert sorted(pool.pages("a") + pool.pages("b")) == [0, 1]


def test_a_full_page_is_shared_and_not_copied() -> None:
    pool = cache(3)
    pool.allocate("a")
    written(pool, {"a": 4})
    pool.fork("a", "b")
    written(pool, {"a": 1, "b": 1})
    assert pool.pages("a")[0] == pool.pages("b")[0]


def test_a_page_is_cleared_when_it_is_handed_out() -> None:
    pool = cache(1)
    pool.allocate("a")
    written(pool, {"a": 4})
    pool.k[0].fill_(float("nan"))
    pool.free("a")
    pool.allocate("b")
    pool.append({"b": 1})
    assert not pool.k[0].any()


def test_no_room_names_the_sequence_and_changes_nothing() -> None:
    pool = cache(3)
    for name in ("a", "b"):
        pool.allocate(name)
    written(pool, {"a": 2})
    before = state(pool, ["a", "b"])
    with pytest.raises(xattn.CacheFullError, match="sequence 'b': 3 pages are asked for, and 2 are free") as caught:
        pool.append({"a": 1, "b": 9})
    assert caught.value.sequence == "b"
    assert state(pool, ["a", "b"]) == before


def test_wrong_names_and_numbers() -> None:
    pool = cache()
    pool.allocate("a")
    with pytest.raises(xattn.InvalidArgumentError, match="'a', which is there"):
        pool.allocate("a")
    with pytest.raises(xattn.InvalidArgumentError, match="counts: got -1 for 'a'"):
        pool.append({"a": -1})
    with pytest.raises(xattn.InvalidArgumentError, match="length: got 1, want 0 to 0, the length of 'a'"):
        pool.fork("a", "b", 1)
    pool.free("a")
    for call in (
        pool.free,
        pool.length,
        pool.pages,
        lambda name: pool.append({name: 1}),
        lambda name: pool.fork(name, 2),
    ):
        with pytest.raises(xattn.InvalidArgumentError, match="'a', which was freed or never allocated"):
            call("a")


@pytest.mark.parametrize("backend", ["reference", "sdpa"])
def test_a_batch_of_its_sequences_is_attended(backend: str) -> None:
    torch.manual_seed(0)
    pool, held = cache(), dict[Hashable, list[Tensor]]()
    for name in ("a", "b"):
        pool.allocate(name)
    written(pool, {"a": 7, "b": 3}, held)
    for queries in (None, [3, 2]):
        batch = pool.batch(["b", "a"], queries)
        q = torch.randn(2 if queries is None else 5, 4, 8)
        got = xattn.paged_attention(q, pool.k[0], pool.v[0], batch, unseen_finite=True, backend=backend)
        parts = q.split([1, 1] if queries is None else queries)
        for name, own, part in zip(("b", "a"), parts, got.split([len(x) for x in parts]), strict=True):
            k = torch.stack(held[name])[None]
            want = xattn.attention(own[None], k, k[..., :6].contiguous(), causal=True, backend="reference")
            torch.testing.assert_close(part, want[0])
