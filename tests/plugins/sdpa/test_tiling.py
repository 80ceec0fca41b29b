"""How the sdpa plugin cuts a call for its kernels, against a table of every (query, key) pair."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
from support import visible_pairs
from xattn_sdpa.attention import flash
from xattn_sdpa.attention.tiling import Tile, tiles

from xattn.plugin.geometry import Geometry

SIZES = range(6)
OFFSETS = range(-6, 7)  # past both ends
SIDES = (None, 0, 1, 2, 3, 7)  # 7 is wider than every problem


def geometries(seqlen_q: int) -> Iterator[Geometry]:
    for seqlen_k, left, right, offset in itertools.product(SIZES, SIDES, SIDES, OFFSETS):
        yield Geometry(seqlen_q, seqlen_k, left, right, offset)


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
        visible = visible_pairs(geometry)
        found = list(tiles(geometry, rows, causal_tiles))
        covered: set[tuple[int, int]] = set()
        for tile in found:
            assert 0 <= tile.row < tile.row_end <= seqlen_q, (geometry, tile)
            assert 0 <= tile.key < tile.key_end <= geometry.seqlen_k, (geometry, tile)
            assert tile.row // rows == (tile.row_end - 1) // rows, f"{tile} crosses a block of {geometry}"
            claimed = inside(tile)
            pairs = claimed & visible
            assert not covered & pairs, f"{tile} covers pairs again in {geometry}"
            covered |= pairs
            if tile.kind != "masked":
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
    assert list(tiles(Geometry(5, 3, 7, 7, -2), 6, False)) == [Tile(0, 5, 0, 3, "full")]
    assert list(tiles(Geometry(1, 9, 2, 0, 8), 6, False)) == [Tile(0, 1, 6, 9, "full")]
    assert list(tiles(Geometry(4, 4, None, 0, 0), 6, True)) == [Tile(0, 4, 0, 4, "causal")]
    assert list(tiles(Geometry(2, 6, None, 0, 4), 6, True)) == [Tile(0, 2, 0, 4, "full"), Tile(0, 2, 4, 6, "causal")]


@pytest.mark.parametrize("seqlen_q", SIZES[1:])
def test_what_flash_is_told(seqlen_q: int) -> None:
    for geometry in geometries(seqlen_q):
        visible, told = visible_pairs(geometry), flash.counted(geometry)
        if told is None:
            assert visible, f"{geometry}: nothing is visible, which needs no kernel"
            continue
        assert (told.seqlen_k == 0) == (not visible), geometry
        if not visible:
            continue
        # The kernel gets all queries and the keys that are seen, and counts from their bottom right.
        assert (told.seqlen_q, told.seqlen_k) == (seqlen_q, geometry.end_k - geometry.first_k), geometry
        assert told.offset == told.seqlen_k - seqlen_q, geometry
        assert {(i, geometry.first_k + j) for i, j in visible_pairs(told)} == visible, (geometry, told)
        assert told.left is None or told.left >= 0, geometry
        assert told.right is None or told.right >= 0, geometry
        if told.offset < 0 and told.left is not None:
            assert told.right is not None, f"{geometry}: the kernel mistakes an open right side here"
        if told.offset < 0 and told.right is not None:
            assert told.right < told.seqlen_k, f"{geometry}: the kernel mistakes so wide a right side here"


@pytest.mark.parametrize("seqlen_q", SIZES[1:])
def test_flash_serves_the_bands_that_matter(seqlen_q: int) -> None:
    """Without these a GPU falls back to blocks of matmuls: everything, causal and causal windows from the bottom right,
    a window on both sides where the lengths agree, a causal chunk anywhere in a cache."""
    for seqlen_k in range(seqlen_q, 12):
        offset = seqlen_k - seqlen_q
        full = Geometry(seqlen_q, seqlen_k, None, None, offset)
        assert flash.counted(full) == full
        for left in SIDES:
            assert flash.counted(Geometry(seqlen_q, seqlen_k, left, 0, offset)) is not None
            for inside in range(offset):
                assert flash.counted(Geometry(seqlen_q, seqlen_k, left, 0, inside)) is not None
        assert flash.counted(Geometry(seqlen_q, seqlen_q, 2, 2, 0)) is not None
