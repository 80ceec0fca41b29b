"""The geometry of the sdpa plugin against a table of every (query, key) pair."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from xattn_sdpa import flash
from xattn_sdpa.tiling import Tile, tiles

SIZES = range(6)
OFFSETS = range(-6, 7)  # past both ends
SIDES = (None, 0, 1, 2, 3, 7)  # 7 is wider than every problem


@dataclass(frozen=True)
class Geometry:
    seqlen_q: int
    seqlen_k: int
    offset: int
    left: int | None
    right: int | None

    def sees(self, i: int, j: int) -> bool:
        if self.left is not None and j < i + self.offset - self.left:
            return False
        return self.right is None or j <= i + self.offset + self.right

    def pairs(self) -> set[tuple[int, int]]:
        """Every (query, key) that is visible."""
        table = itertools.product(range(self.seqlen_q), range(self.seqlen_k))
        return {(i, j) for i, j in table if self.sees(i, j)}


def geometries(seqlen_q: int) -> Iterator[Geometry]:
    for rest in itertools.product(SIZES, OFFSETS, SIDES, SIDES):
        yield Geometry(seqlen_q, *rest)


def inside(tile: Tile) -> set[tuple[int, int]]:
    """Every (query, key) of a tile that its kind calls visible, or may."""
    rows, keys = range(tile.row, tile.row_end), range(tile.key, tile.key_end)
    triangle = tile.kind == "causal"
    return {(i, j) for i in rows for j in keys if not triangle or j - tile.key <= i - tile.row}


@pytest.mark.parametrize("causal_tiles", [False, True])
@pytest.mark.parametrize("rows", [1, 2, 4, 6])
@pytest.mark.parametrize("seqlen_q", SIZES)
def test_tiles(seqlen_q: int, rows: int, causal_tiles: bool) -> None:
    for geometry in geometries(seqlen_q):
        visible = geometry.pairs()
        found = list(tiles(*vars(geometry).values(), rows, causal_tiles))
        covered: set[tuple[int, int]] = set()
        for tile in found:
            assert 0 <= tile.row < tile.row_end <= seqlen_q, (geometry, tile)
            assert 0 <= tile.key < tile.key_end <= geometry.seqlen_k, (geometry, tile)
            assert tile.row // rows == (tile.row_end - 1) // rows, f"{tile} crosses a block of {geometry}"
            claimed = inside(tile)
            pairs = claimed & visible
            assert not covered & pairs, f"{tile} covers pairs again in {geometry}"
            covered |= pairs
            if tile.kind != "band":
                assert claimed <= visible, f"{tile} claims what {geometry} hides"
                whole = {(i, j) for i in range(tile.row, tile.row_end) for j in range(tile.key, tile.key_end)}
                assert whole & visible == claimed, f"{tile} hides what {geometry} shows"
            keys = {j for _, j in pairs}
            assert keys == set(range(tile.key, tile.key_end)), f"{tile} of {geometry} reads keys that no row of it sees"
        assert covered == visible, geometry
        # A merge knows a block's earlier tiles by being next to them and of the same rows.
        blocks = [(tile.row, tile.row_end) for tile in found]
        assert blocks == sorted(blocks), geometry
        assert len({row for row, _ in blocks}) == len(set(blocks)), geometry
        assert causal_tiles or len(blocks) == len(set(blocks)), geometry
        assert causal_tiles or all(tile.kind != "causal" for tile in found), geometry


def test_a_band_that_hides_nothing_needs_no_mask() -> None:
    """Else a full call would pay for one: wide sides, a decode, a block far behind the diagonal."""
    assert list(tiles(5, 3, -2, 7, 7, 6, False)) == [Tile(0, 5, 0, 3, "full")]
    assert list(tiles(1, 9, 8, 2, 0, 6, False)) == [Tile(0, 1, 6, 9, "full")]
    assert list(tiles(4, 4, 0, None, 0, 6, True)) == [Tile(0, 4, 0, 4, "causal")]
    assert list(tiles(2, 6, 4, None, 0, 6, True)) == [Tile(0, 2, 0, 4, "full"), Tile(0, 2, 4, 6, "causal")]


@pytest.mark.parametrize("seqlen_q", SIZES[1:])
def test_flash_band(seqlen_q: int) -> None:
    for geometry in geometries(seqlen_q):
        visible = geometry.pairs()
        band = flash.band(*vars(geometry).values())
        if band is None:
            assert visible, f"{geometry}: nothing is visible, which needs no kernel"
            continue
        first, last, left, right = band
        assert (first == last) == (not visible), geometry
        if not visible:
            continue
        assert {j for _, j in visible} == set(range(first, last)), geometry
        assert left is None or left >= 0, geometry
        assert right is None or right >= 0, geometry
        # The kernel counts from the bottom right of the keys that it is given.
        kernel = Geometry(seqlen_q, last - first, last - first - seqlen_q, left, right)
        assert {(i, first + j) for i, j in kernel.pairs()} == visible, (geometry, band)
        if last - first < seqlen_q and left is not None:
            assert right is not None, f"{geometry}: the kernel mistakes an open right side here"
        if last - first < seqlen_q and right is not None:
            assert right < last - first, f"{geometry}: the kernel mistakes so wide a right side here"


@pytest.mark.parametrize("seqlen_q", SIZES[1:])
def test_flash_serves_the_bands_that_matter(seqlen_q: int) -> None:
    """Without these a GPU falls back to blocks of matmuls: everything, causal and causal windows from the bottom right,
    a window on both sides where the lengths agree."""
    for seqlen_k in range(seqlen_q, 12):
        offset = seqlen_k - seqlen_q
        assert flash.band(seqlen_q, seqlen_k, offset, None, None) == (0, seqlen_k, None, None)
        for left in SIDES:
            assert flash.band(seqlen_q, seqlen_k, offset, left, 0) is not None
        assert flash.band(seqlen_q, seqlen_q, 0, 2, 2) is not None
