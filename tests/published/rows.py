"""Calls out of the tests of aiter and flash-attention, as data: their parameters, written anew.

A table names where its parameters were read and has a list for each of them. Their product has thousands of calls; of
it a table has some tens, in which every value of every list is, and each shape meets other values in each round. Left
out are dtypes of quantised caches, which are no dtype of a call here, and what is no question of numbers: profiling,
compiled variants of one kernel.

A call of more scores than a machine is given is cut: batch rows first, then all lengths are halved. Its id says so.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

Lengths = tuple[tuple[int, int], ...]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One call.

    lengths: queries and keys of each sequence; of each batch row, in `attention`, where all are the same.
    layout:  how q, k and v are stored: "BHSD", "SBHD", "KVPACKED" and "QKVPACKED" (in one tensor), pages "HND"; under
             any other name as the call has them.
    options: of the call; block_size is that of the pages, and `beside` the tensor that is drawn besides: "bias",
             "alibi", "sinks".
    grads:   whether the gradients of q, k and v are asked for.
    cut:     what was left of the published size, in words; "" for all of it.
    """

    table: str
    op: str
    lengths: Lengths
    heads: tuple[int, int]
    headdims: tuple[int, int]
    dtype: str
    layout: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    grads: bool = False
    cut: str = ""

    @property
    def id(self) -> str:
        queries, keys = ("-".join(str(pair[i]) for pair in self.lengths[:3]) for i in (0, 1))
        sizes = f"b{len(self.lengths)}-q{queries}-k{keys}-h{self.heads[0]}-g{self.heads[1]}"
        said = [f"{name}={value}" for name, value in self.options.items() if value not in (None, False)]
        said = [self.layout, *said] if self.layout else said
        words = [self.table, self.dtype, f"{sizes}-d{self.headdims[0]}-v{self.headdims[1]}", *said]
        return "/".join([*words, *(["grads"] if self.grads else []), *([f"cut: {self.cut}"] if self.cut else [])])

    @property
    def seed(self) -> int:
        return zlib.crc32(self.id.encode())

    @property
    def scores(self) -> int:
        return self.heads[0] * sum(queries * keys for queries, keys in self.lengths)

    def within(self, scores: int) -> Row:
        """The call, cut to at most so many scores."""
        kept, halved = self.lengths, 0
        while len(kept) > 1 and replace(self, lengths=kept).scores > scores:
            kept = kept[: (len(kept) + 1) // 2]
        lengths = kept
        while replace(self, lengths=lengths).scores > scores:
            halved += 1
            lengths = tuple((max(q >> halved, 1), max(k >> halved, 1)) for q, k in kept)
        said = [f"{len(kept)} of {len(self.lengths)} sequences"] if len(kept) < len(self.lengths) else []
        said += [f"lengths by {2**halved}"] if halved else []
        return replace(self, lengths=lengths, cut=", ".join(said)) if said else self


@dataclass(frozen=True, kw_only=True)
class Table:
    """name: of the published test. link: its parameters, at the commit at which they were read.

    lists: the parameters by name: "lengths", "heads", "headdims", "dtype", "layout", "grads", the rest options.
    rounds: how often every value of `lengths` is taken, each time with others of the other lists.
    """

    name: str
    link: str
    op: str
    lists: Mapping[str, Sequence[Any]]
    rounds: int = 2

    def rows(self) -> list[Row]:
        others = {name: values for name, values in self.lists.items() if name != "lengths"}
        found = []
        for turn in range(self.rounds * len(self.lists["lengths"])):
            picked = {name: values[_place(name, turn, len(values))] for name, values in others.items()}
            fields = {name: picked.pop(name) for name in _FIELDS if name in picked}
            lengths = self.lists["lengths"][turn % len(self.lists["lengths"])]
            found.append(Row(table=self.name, op=self.op, lengths=lengths, options=picked, **fields))
        return list({row.id: row for row in found}.values())


_FIELDS = ("heads", "headdims", "dtype", "layout", "grads")


def _place(name: str, turn: int, count: int) -> int:
    """Which of `count` values a turn takes: all of them, in an order of the list's own, and then in another."""
    cycle, place = divmod(turn, count)
    order = sorted(range(count), key=lambda n: zlib.crc32(f"{name} {cycle} {n}".encode()))
    return order[place]


def equal(batch: int, *pairs: tuple[int, int]) -> list[Lengths]:
    """Batches whose rows have the same lengths."""
    return [(pair,) * batch for pair in pairs]


def ragged(batch: int, *pairs: tuple[int, int]) -> list[Lengths]:
    """Packed sequences up to the published lengths: the first has them, the others fewer, each at its own rate, as
    where paddings are drawn."""
    return [
        tuple((max(q - q * n // (2 * batch), 1), max(k - k * n // (3 * batch), 1)) for n in range(batch))
        for q, k in pairs
    ]
