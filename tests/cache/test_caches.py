"""Caches: what they hold against plain lists of keys, and what they refuse."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import xattn
from xattn.cache import PagedBatch, PagedKVCache, StaticKVCache


def tried(cache: PagedKVCache, sequence: int, tokens: int) -> tuple[list[int], str]:
    """The slots, or what the error says."""
    try:
        return cache.append(sequence, tokens), ""
    except xattn.InvalidArgumentError as error:
        return [], str(error)


def test_a_paged_cache_is_what_its_sequences_were_given() -> None:
    """Appends, forks and frees by chance, against a list of keys for each sequence."""
    draw = random.Random(0)
    cache = PagedKVCache(24, 4, 2, 8, 6, num_layers=2)
    held: dict[int, list[Tensor]] = {}
    refused = 0
    for name in range(400):
        act = draw.choice(["new", "append", "append", "append", "fork", "free"])
        picked = draw.choice(list(held)) if held else None
        if act == "new" or picked is None:
            cache.allocate(name)
            held[name] = []
        elif act == "fork":
            length = draw.randrange(len(held[picked]) + 1)
            cache.fork(picked, name, length)
            held[name] = held[picked][:length]
        elif act == "free":
            cache.free(picked)
            del held[picked]
        else:
            new = torch.randn(draw.randrange(7), 2, 8)
            before = cache.free_blocks, cache.pages(picked), cache.length(picked)
            slots, error = tried(cache, picked, len(new))
            if error:
                refused += 1
                assert f"sequence {picked}" in error
                assert before == (cache.free_blocks, cache.pages(picked), cache.length(picked))
                continue
            for layer in range(2):
                xattn.write_kv(
                    new + layer, new[..., :6], cache.k[layer], cache.v[layer], torch.tensor(slots, dtype=torch.int64)
                )
            held[picked] += list(new)
        for sequence, keys in held.items():
            assert cache.length(sequence) == len(keys)
            stored = cache.k[1][cache.pages(sequence)].flatten(0, 1)
            assert torch.equal(stored[: len(keys)], torch.stack(keys) + 1 if keys else stored[:0])
        used = {page for sequence in held for page in cache.pages(sequence)}
        assert cache.free_blocks == 24 - len(used)
    assert refused > 5


def test_a_page_is_cleared_when_it_is_handed_out() -> None:
    cache = PagedKVCache(1, 4, 1, 8)
    cache.allocate("a")
    cache.append("a", 4)
    cache.k[0].fill_(float("nan"))
    cache.free("a")
    cache.allocate("b")
    cache.append("b", 1)
    assert not cache.k[0].any()


def test_a_shared_page_that_is_full_is_not_copied() -> None:
    cache = PagedKVCache(3, 4, 1, 8)
    cache.allocate("a")
    cache.append("a", 4)
    cache.fork("a", "b")
    assert cache.append("b", 1) == [cache.pages("b")[1] * 4]
    assert cache.pages("a") == cache.pages("b")[:1]


def of_freed(act: Callable[[PagedKVCache], Any]) -> Callable[[PagedKVCache], Any]:
    """Of a cache whose sequence a has ended."""

    def call(cache: PagedKVCache) -> Any:
        cache.free("a")
        return act(cache)

    return call


def append_to_fork(cache: PagedKVCache) -> None:
    """Where no page is left for the copy of the page that both have."""
    cache.fork("a", "c")
    cache.append("b", 4)
    cache.append("c", 1)


FREED = "sequence: got 'a', want one that was allocated and not freed"
REFUSED: dict[str, tuple[Callable[[PagedKVCache], Any], str]] = {
    "an append to a freed one": (of_freed(lambda cache: cache.append("a", 1)), FREED),
    "a fork of a freed one": (of_freed(lambda cache: cache.fork("a", "c")), FREED),
    "freed twice": (of_freed(lambda cache: cache.free("a")), FREED),
    "the table of a freed one": (of_freed(lambda cache: cache.lists("ab")), FREED),
    "the pages of a freed one": (of_freed(lambda cache: cache.pages("a")), FREED),
    "the length of a freed one": (of_freed(lambda cache: cache.length("a")), FREED),
    "never there": (lambda cache: cache.free("z"), "'z'"),
    "twice": (lambda cache: cache.allocate("a"), "'a', want one that is not there yet"),
    "a fork onto another": (lambda cache: cache.fork("a", "b"), "'b', want one that is not there yet"),
    "a fork past the end": (
        lambda cache: cache.fork("a", "c", 6),
        "length: got 6, want 0 to 5, the keys of sequence 'a'",
    ),
    "past capacity": (lambda cache: cache.append("a", 8), "of sequence 'a', which take 2 blocks, want at most the 1"),
    "past capacity, as a shared page is copied": (
        append_to_fork,
        "of sequence 'c', which take 1 blocks, want at most the 0",
    ),
    "fewer than none": (lambda cache: cache.append("a", -1), "tokens: got -1"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_done_names_the_sequence(what: str) -> None:
    cache = PagedKVCache(4, 4, 1, 8)
    for name in "ab":
        cache.allocate(name)
    cache.append("a", 5)
    cache.append("b", 1)
    cache.k[0][cache.pages("b")] = 3.0
    kept = cache.k[0][cache.pages("b")].clone()
    call, said = REFUSED[what]
    with pytest.raises(xattn.InvalidArgumentError) as caught:
        call(cache)
    assert said in str(caught.value)
    assert torch.equal(cache.k[0][cache.pages("b")[:1]], kept)


def test_steps_of_a_batch_object_are_those_of_the_cache() -> None:
    """A prompt in chunks beside a decode, in tensors that stay where they are, with room for one sequence more."""
    torch.manual_seed(0)
    cache = PagedKVCache(16, 4, 2, 8)
    batch = PagedBatch(
        torch.zeros(3, 8, dtype=torch.int32), torch.zeros(3, dtype=torch.int32), torch.zeros(4, dtype=torch.int32),
        slots=torch.zeros(8, dtype=torch.int64),
    )  # fmt: skip
    addresses = [tensor.data_ptr() for tensor in batch.tensors]
    keys: dict[str, list[Tensor]] = {"a": [], "b": []}
    for name in "ab":
        cache.allocate(name)
    for counts in ((5, 1), (3, 0), (1, 1), (1, 6)):
        slots = [slot for name, count in zip("ab", counts, strict=True) for slot in cache.append(name, count)]
        batch.update_(*cache.lists("ab", counts), slots=slots)
        total = sum(counts)
        k, q = torch.zeros(8, 2, 8), torch.randn(total + 1, 4, 8)
        k[:total] = torch.randn(total, 2, 8)
        assert batch.slots is not None
        xattn.write_kv(k, k, cache.k[0], cache.v[0], batch.slots)
        out = xattn.paged_attention(q, cache.k[0], cache.v[0], batch, unseen_finite=True)
        row = 0
        for name, count in zip("ab", counts, strict=True):
            keys[name] += list(k[row : row + count])
            own = torch.stack(keys[name])[None]
            want = xattn.attention(q[None, row : row + count], own, own, causal=True)
            torch.testing.assert_close(out[row : row + count], want[0])
            row += count
        assert not out[total:].any()
    assert addresses == [tensor.data_ptr() for tensor in batch.tensors]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (([[1, 2, 3]], [1], [0, 1]), "block_table: got shape (1, 3), want at most (2, 2)"),
        (([[1], [1], [1]], [1, 1, 1], [0, 1, 2, 3]), "block_table: got shape (3, 1)"),
        (([[1]], [1, 1], [0, 1, 2]), "block_table: got 1 rows, want 2, for 2 sequences"),
        (([[1]], [1], None), "cu_seqlens_q: got None"),
    ],
    ids=["pages", "sequences", "rows", "no cu_seqlens_q"],
)  # fmt: skip
def test_what_has_no_room_in_a_batch_is_not_written(given: tuple[Any, ...], said: str) -> None:
    batch = PagedBatch(*(torch.full(size, 7, dtype=torch.int32) for size in ((2, 2), (2,), (3,))))
    with pytest.raises(xattn.InvalidArgumentError) as caught:
        batch.update_(*given)
    assert said in str(caught.value)
    assert all((tensor == 7).all() for tensor in batch.tensors)


def test_a_static_cache_grows_row_by_row_alike() -> None:
    torch.manual_seed(0)
    cache, kept = StaticKVCache(2, 8, 2, 8), torch.zeros(2, 0, 2, 8)
    for new in (3, 1, 4):
        k = torch.randn(2, new, 2, 8)
        cache.append(k, k)
        kept = torch.cat((kept, k), 1)
        q = torch.randn(2, new, 4, 8)
        out = xattn.attention(q, cache.k, cache.v, causal=True, seqlens_k=cache.seqlens_k)
        torch.testing.assert_close(out, xattn.attention(q, kept, kept, causal=True))
    with pytest.raises(xattn.InvalidArgumentError, match="1 keys after 8 of row 0"):
        cache.append(k[:, :1], k[:, :1])
    cache.reset(0)
    assert (cache.lengths, cache.seqlens_k.tolist()) == ([0, 8], [0, 8])
    assert torch.equal(cache.k[1], kept[1])
    assert not cache.k[0].any()


def test_a_static_cache_forgets_its_last_keys() -> None:
    cache, k = StaticKVCache(2, 8, 2, 8), torch.randn(2, 4, 2, 8)
    cache.append(k, k)
    cache.reset(0)
    cache.append(k[:, :3], k[:, :3])
    cache.drop(2)
    assert (cache.lengths, cache.seqlens_k.tolist()) == ([1, 5], [1, 5])
    cache.append(k[:, :1], -k[:, :1])
    assert torch.equal(cache.v[0, :2], torch.stack([k[0, 0], -k[0, 0]]))
    assert torch.equal(cache.v[1, 3:6], torch.stack([k[1, 3], k[1, 0], -k[1, 0]]))
    for count, said in ((3, "count: got 3, want 0 to 2, the keys of row 0"), (-1, "count: got -1")):
        with pytest.raises(xattn.InvalidArgumentError, match=said):
            cache.drop(count)


def test_a_static_cache_moves_its_last_keys_to_the_beginning() -> None:
    for count in (0, 2, 3, 4):  # the last two overlap what they are moved to
        cache, k = StaticKVCache(2, 8, 2, 8), torch.randn(2, 4, 2, 8)
        cache.append(k, -k)
        cache.keep_last(count)
        assert (cache.lengths, cache.seqlens_k.tolist()) == ([count] * 2, [count] * 2)
        assert torch.equal(cache.k[:, :count], k[:, 4 - count :])
        assert torch.equal(cache.v[:, :count], -k[:, 4 - count :])
    cache.reset(0)
    cache.append(k[:, :2], k[:, :2])
    cache.keep_last(2)
    assert (cache.lengths, cache.seqlens_k.tolist()) == ([2, 2], [2, 2])
    assert torch.equal(cache.k[:, :2], k[:, :2])
    with pytest.raises(xattn.InvalidArgumentError, match="count: got 3, want 0 to 2, the keys of row 0"):
        cache.keep_last(3)
    quantised = StaticKVCache(2, 8, 2, 8, dtype=torch.int8)
    with pytest.raises(xattn.InvalidArgumentError, match=r"count: got a move of torch\.int8 keys, whose scales stay"):
        quantised.keep_last(0)
    with pytest.raises(xattn.InvalidArgumentError, match=r"rows: got a move of torch\.int8 keys, whose scales stay"):
        quantised.select(torch.tensor([1, 0]))


@pytest.mark.parametrize("rows", [[1, 0], [1, 1], [0, 0, 1], [1]])
@pytest.mark.parametrize("ragged", [False, True])
def test_rows_of_a_static_cache_take_each_others_places(rows: list[int], ragged: bool) -> None:
    cache, k = StaticKVCache(2, 8, 2, 8), torch.randn(2, 4, 2, 8)
    cache.append(k, -k)
    if ragged:
        cache.reset(0)
    before, lengths = cache.k.clone(), cache.lengths
    cache.select(torch.tensor(rows))
    assert cache.lengths == cache.seqlens_k.tolist() == [lengths[row] for row in rows]
    for row, of in enumerate(rows):
        assert torch.equal(cache.k[row, : lengths[of]], before[of, : lengths[of]])
        assert torch.equal(cache.v[row, : lengths[of]], -before[of, : lengths[of]])
    cache.append(k[:1].expand(len(rows), -1, -1, -1), k[:1].expand(len(rows), -1, -1, -1))
    assert torch.equal(cache.k[-1, lengths[rows[-1]] : lengths[rows[-1]] + 4], k[0])


NEW = torch.zeros(2, 1, 2, 8)


@pytest.mark.parametrize(
    ("k", "v", "said"),
    [
        (NEW, NEW.double(), r"v: got \(2, 1, 2, 8\) torch.float64"),
        (NEW, NEW[:, :0], r"v: got \(2, 0, 2, 8\)"),
        (NEW[0], NEW, r"k: got \(1, 2, 8\)"),
        (NEW.transpose(1, 2), NEW, r"k: got \(2, 2, 1, 8\).*pass x\.transpose\(1, 2\)"),
        (NEW.to("meta"), NEW, "k: got .* on meta, want .* on cpu"),
        (NEW, None, "v: got NoneType"),
        (NEW, NEW.clone().requires_grad_(), "v: got requires_grad, .* Detach it"),
    ],
)
def test_a_static_cache_refuses_and_writes_nothing(k: Any, v: Any, said: str) -> None:
    cache = StaticKVCache(2, 8, 2, 8)
    with pytest.raises(xattn.InvalidArgumentError, match=said):
        cache.append(k, v)
    assert cache.lengths == [0, 0]
    assert not cache.k.requires_grad
    with torch.no_grad():
        cache.append(NEW, NEW.clone().requires_grad_())
    assert not cache.v.requires_grad


def test_sizes_and_counts_that_no_cache_has() -> None:
    legal = {"nheads_k": 2, "headdim": 8, "headdim_v": 4, "dtype": torch.float16}
    made: tuple[tuple[Any, dict[str, Any]], ...] = (
        (PagedKVCache, {**legal, "num_blocks": 4, "block_size": 4, "num_layers": 2}),
        (StaticKVCache, {**legal, "batch": 2, "max_seqlen": 4}),
    )
    for cache_of, sizes in made:
        cache_of(**sizes)
        for name in sizes:
            for wrong in (torch.int32, "float16") if name == "dtype" else (0, -1, 4.0, True):
                with pytest.raises(xattn.InvalidArgumentError, match=f"^{name}: got {wrong!r}, want "):
                    cache_of(**{**sizes, name: wrong})
    cache = PagedKVCache(4, 4, 2, 8)
    cache.allocate("a")
    with pytest.raises(xattn.InvalidArgumentError, match=r"tokens: got 1\.5"):
        cache.append("a", 1.5)  # type: ignore[arg-type]
    for queries in ([1, 2], [-1]):
        with pytest.raises(xattn.InvalidArgumentError, match=r"1 numbers >= 0, one for each sequence"):
            cache.lists(["a"], queries)
    with pytest.raises(xattn.InvalidArgumentError, match="row: got 2, want 0 to 1"):
        StaticKVCache(2, 8, 2, 8).reset(2)
