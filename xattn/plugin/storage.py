"""Paged storage, as kernels and caches share it: the batch of a step, and which of its pages are looked at."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from xattn.errors import InvalidArgumentError

T = TypeVar("T")

Row = Sequence[int]


@dataclass(frozen=True)
class Lists:
    """A batch as the host knows it. Sequence b has queries starts_q[b] to starts_q[b + 1] and seqlens_k[b] keys, which
    lie in the pages block_table[b], where those are known."""

    starts_q: list[int]
    seqlens_k: list[int]
    block_table: list[list[int]] | None

    def seen(self, b: int, left: int | None, right: int | None, offset: int | None) -> tuple[int, int]:
        """The keys [first, end) that some query of sequence b sees, by the band and `off`, which is None for
        "bottom_right"; (0, 0) where it sees none."""
        queries, keys = self.starts_q[b + 1] - self.starts_q[b], self.seqlens_k[b]
        if queries == 0:
            return 0, 0
        if offset is None:
            offset = keys - queries
        first = 0 if left is None else max(0, offset - left)
        end = keys if right is None else min(keys, offset + queries + right)
        return (first, end) if first < end else (0, 0)


class PagedBatch:
    """Whose keys lie in which pages, and which queries are whose: what changes from step to step, in tensors that stay
    where they are. It stands in place of `paged_attention`'s block_table, for all layers of a step.

    block_table:  (batch, max_blocks) int32: the pages of each sequence, in order. Entries of pages that no query sees
        may be any number.
    seqlens_k:    (batch,) int32: how many keys each sequence has, the new ones among them.
    cu_seqlens_q: (batch + 1,) int32, as in `varlen_attention`; None is one query a sequence.
    max_seqlen_q, max_seqlen_k: upper bounds of the lengths. None reads them: from the CPU, or by a sync from a device,
        when a call needs them.
    slots: (tokens,) int64: where `write_kv` puts the new tokens, -1 for none; None where nobody asks.

    The tensors are not copied. To change them, call `update_`: what was worked out from them is kept until then.
    """

    def __init__(
        self,
        block_table: Tensor,
        seqlens_k: Tensor,
        cu_seqlens_q: Tensor | None = None,
        *,
        max_seqlen_q: int | None = None,
        max_seqlen_k: int | None = None,
        slots: Tensor | None = None,
    ) -> None:
        self.block_table, self.seqlens_k, self.cu_seqlens_q, self.slots = block_table, seqlens_k, cu_seqlens_q, slots
        self.max_seqlen_q: Any = 1 if cu_seqlens_q is None else max_seqlen_q
        self.max_seqlen_k: Any = max_seqlen_k
        # What decides a plan, as `paged_attention` writes it down at the first call; None before.
        self.kind: Hashable = None
        # The calls of this step whose values were looked at.
        self.passed: set[Hashable] = set()
        self._lists: Lists | None = None
        self._derived: dict[Hashable, Any] = {}
        # What the plans' `prepare` keeps from step to step, at fixed addresses.
        self.kept: dict[Hashable, Any] = {}

    @property
    def batch(self) -> int:
        """How many sequences it has room for."""
        return self.seqlens_k.shape[0]

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        found = (self.block_table, self.seqlens_k)
        return found if self.cu_seqlens_q is None else (*found, self.cu_seqlens_q)

    @property
    def starts_q(self) -> Tensor:
        """(batch + 1,): cu_seqlens_q, or one query a sequence."""
        if self.cu_seqlens_q is None:
            return torch.arange(self.batch + 1, dtype=torch.int32, device=self.seqlens_k.device)
        return self.cu_seqlens_q

    @property
    def seqlens_q(self) -> Tensor:
        """(batch,): how many queries each sequence has."""
        return self.starts_q.diff()

    @property
    def on_host(self) -> bool:
        """Whether the host knows the lengths: `lists` has them without a sync."""
        return self._lists is not None or self.seqlens_k.device.type == "cpu"

    def lists(self, on_device: bool = False) -> Lists | None:
        """The batch as the host knows it: read from the CPU, or as `update_` got it. None for tensors on a device whose
        values nobody gave, unless on_device asks to read them, which stops the stream."""
        if self._lists is None and (on_device or self.seqlens_k.device.type == "cpu"):
            starts = range(self.batch + 1) if self.cu_seqlens_q is None else self.cu_seqlens_q.tolist()
            self._lists = Lists(list(starts), self.seqlens_k.tolist(), self.block_table.tolist())
        return self._lists

    def derived(self, key: Hashable, make: Callable[[], T]) -> T:
        """What `make` returns, made once a step for all layers. key: tells the makers apart."""
        try:
            return self._derived[key]  # type: ignore[no-any-return]
        except KeyError:
            self._derived[key] = made = make()
            return made

    def update_(
        self,
        block_table: Tensor | Sequence[Row],
        seqlens_k: Tensor | Row,
        cu_seqlens_q: Tensor | Row | None = None,
        *,
        slots: Tensor | Row | None = None,
        max_seqlen_q: int | None = None,
        max_seqlen_k: int | None = None,
    ) -> None:
        """The next step, written into the tensors that are there. Fewer sequences than there is room for leave padding
        ones, without queries and keys; fewer slots leave -1.

        Lists are kept for the host too, and bounds read from them; of tensors the host knows what it is told, and what
        lies on the CPU. Raises InvalidArgumentError where there is no room, or where the batch was made with
        cu_seqlens_q or slots and gets none, and the other way round; nothing was written then.
        """
        given = {
            "block_table": _table(block_table),
            "seqlens_k": _ints(seqlens_k, torch.int32),
            "cu_seqlens_q": _ints(cu_seqlens_q, torch.int32),
            "slots": _ints(slots, torch.int64),
        }
        for name, new in given.items():
            self._check_room(name, new, getattr(self, name))
        count = len(seqlens_k)
        for name, wanted in (("block_table", count), ("cu_seqlens_q", count + 1)):
            new = given[name]
            if new is not None and len(new) != wanted:
                raise InvalidArgumentError(name, f"{len(new)} rows", f"{wanted}, for {count} sequences")
        self._write(given, count)
        self.kind, self.passed, self._lists, self._derived = None, set(), None, {}
        if not any(isinstance(x, Tensor) for x in (seqlens_k, cu_seqlens_q)):
            self._keep(block_table, seqlens_k, cu_seqlens_q)
        self.max_seqlen_q = 1 if self.cu_seqlens_q is None else max_seqlen_q
        self.max_seqlen_k = max_seqlen_k
        if self._lists is not None:
            starts, lengths = self._lists.starts_q, self._lists.seqlens_k
            if self.max_seqlen_q is None:
                self.max_seqlen_q = max((end - start for start, end in itertools.pairwise(starts)), default=0)
            if max_seqlen_k is None:
                self.max_seqlen_k = max(lengths, default=0)

    def _check_room(self, name: str, new: Tensor | None, room: Tensor | None) -> None:
        if (new is None) != (room is None):
            got, want = ("None", "the next ones") if new is None else ("a value", "None, as the batch was made")
            raise InvalidArgumentError(name, got, want)
        if new is not None and room is not None:
            fits = new.dim() == room.dim() and all(n <= m for n, m in zip(new.shape, room.shape, strict=True))
            if not fits:
                raise InvalidArgumentError(name, f"shape {tuple(new.shape)}", f"at most {tuple(room.shape)}")

    def _write(self, given: dict[str, Tensor | None], count: int) -> None:
        table, lengths = given["block_table"], given["seqlens_k"]
        assert table is not None
        assert lengths is not None
        self.block_table[:count, : table.shape[1]] = table.to(self.block_table.device)
        self.seqlens_k[:count] = lengths
        self.seqlens_k[count:] = 0
        starts, slots = given["cu_seqlens_q"], given["slots"]
        if self.cu_seqlens_q is not None and starts is not None:
            self.cu_seqlens_q[: count + 1] = starts
            self.cu_seqlens_q[count + 1 :] = starts[-1]
        if self.slots is not None and slots is not None:
            self.slots[: len(slots)] = slots
            self.slots[len(slots) :] = -1

    def _keep(self, table: Tensor | Sequence[Row], lengths: Any, starts: Any) -> None:
        padding = self.batch - len(lengths)
        starts = [*starts, *[starts[-1]] * padding] if starts is not None else list(range(self.batch + 1))
        rows = None if isinstance(table, Tensor) else [*map(list, table), *[[] for _ in range(padding)]]
        if rows is None and self.block_table.device.type == "cpu":
            rows = self.block_table.tolist()
        self._lists = Lists(starts, [*lengths, *[0] * padding], rows)


def _ints(values: Tensor | Row | None, dtype: torch.dtype) -> Tensor | None:
    return values if values is None or isinstance(values, Tensor) else torch.tensor(list(values), dtype=dtype)


def _table(rows: Tensor | Sequence[Row]) -> Tensor:
    """Rows of several lengths are filled up with -1."""
    if isinstance(rows, Tensor):
        return rows
    width = max(map(len, rows), default=0)
    return torch.tensor([[*row, *[-1] * (width - len(row))] for row in rows], dtype=torch.int32).view(len(rows), width)
