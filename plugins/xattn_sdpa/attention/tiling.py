"""Which keys a block of queries needs, in parts that kernels know."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from xattn.plugin.geometry import Geometry


@dataclass(frozen=True)
class Tile:
    """Query rows [row, row_end) against keys [key, key_end).

    kind, as far as the band goes: "full", every row sees every key; "causal", row r of the tile sees its keys 0..r;
    "masked", row i sees the keys that the band allows it, and may see none.
    """

    row: int
    row_end: int
    key: int
    key_end: int
    kind: Literal["full", "causal", "masked"]


def tiles(geometry: Geometry, rows: int, causal_tiles: bool) -> Iterator[Tile]:
    """Cover every visible (query, key) pair once, and no key that no query of the block sees.

    rows: the largest number of query rows in a tile.
    causal_tiles: split a block that is open to the left into a "full" and a "causal" tile, for kernels that know these
    without a mask; otherwise it is one "masked" tile. Tiles of one block follow each other.
    """
    for start in range(0, geometry.seqlen_q, rows):
        yield from _block(geometry, start, min(start + rows, geometry.seqlen_q), causal_tiles)


def _block(geometry: Geometry, start: int, end: int, causal_tiles: bool) -> Iterator[Tile]:
    block = geometry.part(start, end, 0, geometry.seqlen_k)
    first_q, end_q, first_k, end_k = block.seen()
    if first_q == end_q:
        return
    row, row_end, key, key_end = start + first_q, start + end_q, first_k, end_k
    if block.part(first_q, end_q, first_k, end_k).full:
        yield Tile(row, row_end, key, key_end, "full")
    elif causal_tiles and geometry.left is None and geometry.right is not None:
        diagonal = row + geometry.offset + geometry.right
        if diagonal > 0:
            yield Tile(row, row_end, 0, diagonal, "full")
        yield Tile(row, row_end, diagonal, key_end, "causal")
    else:
        yield Tile(row, row_end, key, key_end, "masked")
