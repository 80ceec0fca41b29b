"""Which keys a block of query rows needs: the geometry of causal, window and alignment, on plain ints."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Tile:
    """Query rows [row, row_end) against keys [key, key_end).

    kind, as far as the band goes: "full", every row sees every key; "causal", row r of the tile sees its keys 0..r;
    "band", row i sees the keys that `offset`, `left` and `right` of the problem allow, and a row may see none.
    """

    row: int
    row_end: int
    key: int
    key_end: int
    kind: Literal["full", "causal", "band"]


def tiles(
    seqlen_q: int, seqlen_k: int, offset: int, left: int | None, right: int | None, rows: int, causal_tiles: bool
) -> Iterator[Tile]:
    """Cover every visible (query, key) pair once, and no key that no query of the block sees.

    Query i sees key j when i + offset - left <= j <= i + offset + right; None is open.
    rows: the largest number of query rows in a tile.
    causal_tiles: split a block that is open to the left into a "full" and a "causal" tile, for kernels that know these
    without a mask; otherwise it is one "band" tile. Tiles of one block follow each other.
    """
    for start in range(0, seqlen_q, rows):
        yield from _block(start, min(start + rows, seqlen_q), seqlen_k, offset, left, right, causal_tiles)


def _block(
    row: int, end: int, seqlen_k: int, offset: int, left: int | None, right: int | None, causal_tiles: bool
) -> Iterator[Tile]:
    # Rows outside these bounds see no key.
    if right is not None:
        row = max(row, -offset - right)
    if left is not None:
        end = min(end, seqlen_k - offset + left)
    if row >= end or seqlen_k == 0:
        return
    first = 0 if left is None else max(0, row + offset - left)
    last = seqlen_k if right is None else min(seqlen_k, end + offset + right)
    # The keys that every row of the block sees.
    common_first = first if left is None else max(first, end - 1 + offset - left)
    common_last = last if right is None else min(last, row + offset + right + 1)
    if common_first <= first and common_last >= last:
        yield Tile(row, end, first, last, "full")
    elif causal_tiles and left is None and right is not None:
        diagonal = row + offset + right
        if diagonal > 0:
            yield Tile(row, end, 0, diagonal, "full")
        yield Tile(row, end, diagonal, last, "causal")
    else:
        yield Tile(row, end, first, last, "band")
