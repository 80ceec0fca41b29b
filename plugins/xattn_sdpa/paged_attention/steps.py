"""What a step looks like to the kernel, worked out once for all its layers: which rows are one query each and are
decoded together, which are sequences of several, and in which slots their keys lie."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from xattn import PagedBatch
from xattn_sdpa.attention.direct import FEW_KEYS

# What is gathered at a time, in bytes of keys and values, stays in the caches until it is read: on an AMD Zen 5 with
# 2 MB a step cost as much as over a contiguous cache, with 8 MB 1.4 times. And so many keys at most, of one sequence:
# fewer are more to join, and more leave no room for a second sequence.
_BYTES, _KEYS = 2**21, 512


@dataclass(frozen=True)
class Chunk:
    """Keys of some sequences. rows: those of q, None for all. slots: (sequences, keys), where they lie; what a sequence
    does not have repeats its last. bias: (sequences, 1, 1, keys) float32, -inf for those; None where there are none."""

    rows: Tensor | None
    slots: Tensor
    bias: Tensor | None


@dataclass(frozen=True)
class Span:
    """One sequence of several queries: rows [row, end) of q, the first seen key, and the slots of the seen ones."""

    b: int
    row: int
    end: int
    first: int
    offset: int
    slots: Tensor


@dataclass(frozen=True)
class Step:
    """used: the rows of q that belong to a sequence."""

    chunks: list[Chunk]
    spans: list[Span]
    used: int


def step_of(
    batch: PagedBatch, left: int | None, right: int | None, offsets: list[int | None], block_size: int, key_bytes: int,
    together: bool,
) -> Step:  # fmt: skip
    """offsets: `off` of each sequence, None for "bottom_right". key_bytes: of the key and value of one slot. together:
    whether sequences of one query may be decoded together."""
    lists = batch.lists()
    assert lists is not None
    decoded: list[tuple[int, int, int, int]] = []  # sequence, row, first and end of its keys
    spans = []
    for b in range(batch.batch):
        row, end = lists.starts_q[b], lists.starts_q[b + 1]
        first, last = lists.seen(b, left, right, offsets[b])
        if first == last:
            continue
        if together and end - row == 1:
            decoded.append((b, row, first, last))
            continue
        off = offsets[b]
        off = lists.seqlens_k[b] - (end - row) if off is None else off
        slots = _slots(batch, [b], [first], [last], 0, last - first, block_size).squeeze(0)
        spans.append(Span(b, row, end, first, off - first, slots))
    return Step(_chunks(batch, decoded, block_size, key_bytes), spans, lists.starts_q[-1])


def _chunks(
    batch: PagedBatch, decoded: list[tuple[int, int, int, int]], block_size: int, key_bytes: int
) -> list[Chunk]:
    if not decoded:
        return []
    decoded = sorted(decoded, key=lambda each: each[2] - each[3])  # sequences of like lengths side by side
    longest = decoded[0][3] - decoded[0][2]
    size = min(longest, _KEYS, max(1, _BYTES // key_bytes))
    at_once = max(1, _BYTES // (size * key_bytes))
    if longest * len(decoded) * key_bytes <= _BYTES:
        decoded, size, at_once = sorted(decoded), longest, len(decoded)
    found = []
    for group in (decoded[i : i + at_once] for i in range(0, len(decoded), at_once)):
        for start in range(0, max(last - first for *_, first, last in group), size):
            here = [each for each in group if each[3] - each[2] > start]
            found.append(_chunk(batch, here, start, size, block_size))
    return found


def _chunk(batch: PagedBatch, here: list[tuple[int, int, int, int]], start: int, size: int, block_size: int) -> Chunk:
    """The keys `start` to `start + size` of each sequence, counted from its first."""
    sequences, rows, firsts, lasts = (list(column) for column in zip(*here, strict=True))
    counts = [min(last - first - start, size) for first, last in zip(firsts, lasts, strict=True)]
    width = max(counts)
    slots = _slots(batch, sequences, firsts, lasts, start, width, block_size)
    bias = None
    # Few keys without a mask: a row of NaN scores would come out as 0.
    if min(counts) < width or width < FEW_KEYS:
        hidden = torch.arange(width) >= torch.tensor(counts).view(-1, 1, 1, 1)
        bias = torch.zeros(len(here), 1, 1, width).masked_fill_(hidden, -torch.inf)
    every = rows == list(range(batch.batch)) and batch.cu_seqlens_q is None
    return Chunk(None if every else torch.tensor(rows), slots, bias)


def _slots(
    batch: PagedBatch, sequences: list[int], firsts: list[int], lasts: list[int], start: int, width: int, block: int
) -> Tensor:
    """(sequences, width): of keys first + start on, none at or past its last. No entry of another page is looked at."""
    j = torch.arange(start, start + width) + torch.tensor(firsts).unsqueeze(1)
    j = torch.minimum(j, torch.tensor(lasts).unsqueeze(1) - 1)
    table = batch.block_table
    rows = table if sequences == list(range(batch.batch)) else table[sequences]
    return rows.gather(1, j // block).long() * block + j % block
