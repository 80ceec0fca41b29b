"""A cache of pages: sequences of any length in one pool, prefixes shared, and copied when one of them grows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from xattn.errors import CacheFullError, InvalidArgumentError
from xattn.plugin.storage import PagedBatch


@dataclass
class _Sequence:
    length: int = 0
    pages: list[int] = field(default_factory=list)


@dataclass
class _Growth:
    """What an append does to one sequence. copied: its last page is shared, and partly filled. fresh: pages, the copy
    first."""

    sequence: _Sequence
    count: int
    copied: bool
    fresh: int


class PagedKVCache:
    """Keys and values of many sequences in pages of one pool, the same table for all layers.

    num_blocks, block_size: pages, and places in each. nheads_k, headdim, headdim_v: of keys and values; headdim_v None
    is headdim. layers: each has a pair of tensors, k[layer] and v[layer], (num_blocks, block_size, nheads_k, headdim or
    headdim_v), for `write_kv` and `paged_attention`. dtype, device: of the tensors.

    A sequence is known by any name that can be a key of a dict. A page is cleared as it is handed out, so what no query
    sees is finite as long as what is written is: pass unseen_finite=True. Every error leaves the cache as it was.
    """

    def __init__(
        self,
        num_blocks: int,
        block_size: int,
        nheads_k: int,
        headdim: int,
        headdim_v: int | None = None,
        *,
        layers: int = 1,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        def zeros(columns: int) -> list[Tensor]:
            shape = (num_blocks, block_size, nheads_k, columns)
            return [torch.zeros(shape, dtype=dtype, device=device) for _ in range(layers)]

        self.block_size = block_size
        self.k, self.v = zeros(headdim), zeros(headdim if headdim_v is None else headdim_v)
        self._free = list(range(num_blocks))[::-1]
        self._owners: Counter[int] = Counter()
        self._sequences: dict[Hashable, _Sequence] = {}

    @property
    def free_pages(self) -> int:
        """How many pages nobody has."""
        return len(self._free)

    def length(self, name: Hashable) -> int:
        """How many keys a sequence has."""
        return self._known(name).length

    def pages(self, name: Hashable) -> list[int]:
        """The pages of a sequence, in order."""
        return list(self._known(name).pages)

    def allocate(self, name: Hashable) -> None:
        """A new sequence, without keys. Raises InvalidArgumentError for one that is there."""
        if name in self._sequences:
            raise InvalidArgumentError("name", f"{name!r}, which is there", "a new sequence")
        self._sequences[name] = _Sequence()

    def append(self, counts: Mapping[Hashable, int]) -> Tensor:
        """Make room for new tokens, so many a sequence.

        Returns their slots (tokens,) int64, sequence by sequence in the order of `counts`: what `write_kv` takes, for
        each layer. A shared page that is not full is copied first. Raises CacheFullError, which names the sequence that
        there is no page for.
        """
        found = [self._growth(name, count) for name, count in counts.items()]
        left = len(self._free)
        # Of those that share a page the last one keeps it.
        shared: Counter[int] = Counter()
        for name, growth in zip(counts, found, strict=True):
            if growth.copied:
                page = growth.sequence.pages[-1]
                shared[page] += 1
                if shared[page] == self._owners[page]:
                    growth.copied, growth.fresh = False, growth.fresh - 1
            if growth.fresh > left:
                raise CacheFullError(name, f"{growth.fresh} pages are asked for, and {left} are free")
            left -= growth.fresh
        slots: list[int] = []
        for growth in found:
            slots += self._grow(growth)
        return torch.tensor(slots, dtype=torch.int64, device=self.k[0].device)

    def fork(self, name: Hashable, new: Hashable, length: int | None = None) -> None:
        """A new sequence that begins with the first `length` keys of another one, all of them for None. They share the
        pages."""
        source = self._known(name)
        length = source.length if length is None else length
        if not 0 <= length <= source.length:
            raise InvalidArgumentError("length", str(length), f"0 to {source.length}, the length of {name!r}")
        self.allocate(new)
        pages = source.pages[: -(-length // self.block_size)]
        self._owners.update(pages)
        self._sequences[new] = _Sequence(length, pages)

    def free(self, name: Hashable) -> None:
        """Forget a sequence. Its pages are free again, but for those that another one shares."""
        for page in reversed(self._known(name).pages):
            self._owners[page] -= 1
            if not self._owners[page]:
                self._free.append(page)
        del self._sequences[name]

    def batch(self, names: Sequence[Hashable], queries: Sequence[int] | None = None) -> PagedBatch:
        """A step over some sequences. queries: how many each has, the last of its keys; None is one each."""
        table, lengths, starts = self.step(names, queries)
        width = max(map(len, table), default=0)
        device = self.k[0].device
        made = PagedBatch(
            torch.full((len(names), width), -1, dtype=torch.int32, device=device),
            torch.zeros(len(names), dtype=torch.int32, device=device),
            None if starts is None else torch.zeros(len(starts), dtype=torch.int32, device=device),
        )
        made.update_(table, lengths, starts)
        return made

    def step(
        self, names: Sequence[Hashable], queries: Sequence[int] | None = None
    ) -> tuple[list[list[int]], list[int], list[int] | None]:
        """Table, lengths and cu_seqlens_q of such a step as lists: what `PagedBatch.update_` takes."""
        known = [self._known(name) for name in names]
        starts = None
        if queries is not None:
            starts = [0]
            for count in queries:
                starts.append(starts[-1] + count)
        return [list(each.pages) for each in known], [each.length for each in known], starts

    def _known(self, name: Hashable) -> _Sequence:
        if name not in self._sequences:
            raise InvalidArgumentError(
                "name", f"{name!r}, which was freed or never allocated", "a sequence of the cache"
            )
        return self._sequences[name]

    def _growth(self, name: Hashable, count: int) -> _Growth:
        sequence = self._known(name)
        if count < 0:
            raise InvalidArgumentError("counts", f"{count} for {name!r}", "a number of tokens >= 0")
        partly = sequence.length % self.block_size != 0
        copied = count > 0 and partly and self._owners[sequence.pages[-1]] > 1
        pages = -(-(sequence.length + count) // self.block_size)
        return _Growth(sequence, count, copied, pages - len(sequence.pages) + copied)

    def _grow(self, growth: _Growth) -> list[int]:
        """Hand out the pages, and the slots of the new tokens."""
        sequence, size = growth.sequence, self.block_size
        fresh = [self._free.pop() for _ in range(growth.fresh)]
        self._owners.update(fresh)
        if fresh:
            at = torch.tensor(fresh, device=self.k[0].device)
            for cache in (*self.k, *self.v):
                cache.index_fill_(0, at, 0)
        if growth.copied:
            old, new, filled = sequence.pages.pop(), fresh[0], sequence.length % size
            for cache in (*self.k, *self.v):
                cache[new, :filled] = cache[old, :filled]
            self._owners[old] -= 1
        sequence.pages += fresh
        places = range(sequence.length, sequence.length + growth.count)
        sequence.length += growth.count
        return [sequence.pages[place // size] * size + place % size for place in places]
