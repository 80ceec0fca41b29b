"""`xattn.plugin.geometry` against the contract's formula, written out for every query and key."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support import visible_pairs
from torch import Tensor
from torch._dynamo.testing import CompileCounter

import xattn
from xattn import AttentionRequest
from xattn.plugin.geometry import Geometry, fill_dead_rows

SIZES = range(6)
OFFSETS = range(-8, 9)  # past both ends
SIDES = (None, 0, 1, 2, 3, 7)  # 7 is wider than every problem


def geometries(seqlen_q: int) -> Iterator[Geometry]:
    for seqlen_k, left, right, offset in itertools.product(SIZES, SIDES, SIDES, OFFSETS):
        yield Geometry(seqlen_q, seqlen_k, left, right, offset)


@pytest.mark.parametrize("seqlen_q", SIZES)
def test_queries_that_see_a_key_and_keys_that_are_seen(seqlen_q: int) -> None:
    for geometry in geometries(seqlen_q):
        visible = visible_pairs(geometry)
        assert {i for i, _ in visible} == set(range(geometry.first_q, geometry.end_q)), geometry
        assert {j for _, j in visible} == set(range(geometry.first_k, geometry.end_k)), geometry
        assert 0 <= geometry.first_q <= geometry.end_q <= seqlen_q, geometry
        assert 0 <= geometry.first_k <= geometry.end_k <= geometry.seqlen_k, geometry


@pytest.mark.parametrize("seqlen_q", SIZES[1:])
def test_sides_that_hide_nothing(seqlen_q: int) -> None:
    for geometry in geometries(seqlen_q):
        if geometry.seqlen_k == 0:
            continue
        every = set(itertools.product(range(seqlen_q), range(geometry.seqlen_k)))
        alone = {
            "left": Geometry(seqlen_q, geometry.seqlen_k, geometry.left, None, geometry.offset),
            "right": Geometry(seqlen_q, geometry.seqlen_k, None, geometry.right, geometry.offset),
        }
        for side, of_one_side in alone.items():
            hides = visible_pairs(of_one_side) != every
            assert (getattr(geometry.opened(), side) is not None) == hides, (geometry, side)
        assert visible_pairs(geometry.opened()) == visible_pairs(geometry), geometry
        assert geometry.full == (visible_pairs(geometry) == every), geometry


@pytest.mark.parametrize("seqlen_q", SIZES)
def test_trimming_to_the_smallest_equal_problem(seqlen_q: int) -> None:
    for geometry in geometries(seqlen_q):
        visible, kept = visible_pairs(geometry), geometry.trimmed()
        moved = {(i + geometry.first_q, j + geometry.first_k) for i, j in visible_pairs(kept)}
        assert moved == visible, (geometry, kept)
        # Nothing is left to cut off.
        assert kept.seqlen_q == len({i for i, _ in visible}), (geometry, kept)
        assert kept.seqlen_k == len({j for _, j in visible}), (geometry, kept)
        if not visible:
            continue
        assert kept.trimmed() == kept, geometry
        assert kept.full == (len(visible) == kept.seqlen_q * kept.seqlen_k), geometry


@pytest.mark.parametrize("seqlen_q", SIZES)
def test_a_part(seqlen_q: int) -> None:
    for geometry in geometries(seqlen_q):
        for first_q, end_q, first_k in ((0, seqlen_q, 0), (1, 3, 2), (2, seqlen_q, 1)):
            if not first_q <= end_q <= seqlen_q or first_k > geometry.seqlen_k:
                continue
            part = geometry.part(first_q, end_q, first_k, geometry.seqlen_k)
            moved = {(i + first_q, j + first_k) for i, j in visible_pairs(part)}
            inside = {(i, j) for i, j in visible_pairs(geometry) if first_q <= i < end_q and first_k <= j}
            assert moved == inside, (geometry, part)


@pytest.mark.parametrize("seqlen_q", SIZES)
def test_counting_from_another_diagonal(seqlen_q: int) -> None:
    for geometry in geometries(seqlen_q):
        visible = visible_pairs(geometry)
        for offset in (-9, 0, geometry.seqlen_k - seqlen_q, 4):
            recounted = geometry.recounted(offset)
            assert recounted.offset == offset
            assert visible_pairs(recounted) == visible, (geometry, recounted)
            # A negative side changes no formula.
            assert recounted.trimmed().recounted(0).opened() == geometry.trimmed().recounted(0).opened(), geometry


def test_causal_and_square() -> None:
    """What kernels without windows or with one alignment ask for."""
    assert Geometry(4, 4, None, 0, 0).square
    assert Geometry(4, 4, 2, 0, 0).square
    assert not Geometry(4, 4, None, 1, -1).square
    assert not Geometry(4, 6, None, 0, 2).square
    # Two queries see no key, and no query sees the last key but two.
    assert Geometry(6, 4, None, 0, -2).trimmed() == Geometry(4, 4, None, 0, 0)
    assert Geometry(4, 6, None, 0, 0).trimmed().square
    # One query sees one stretch of keys.
    assert Geometry(1, 9, 3, 0, 8).trimmed() == Geometry(1, 4, None, None, 3)
    assert Geometry(3, 9, 2, 0, 6).causal
    assert not Geometry(3, 9, 2, None, 6).causal


def request_for(seqlen_q: int, seqlen_k: int, **options: Any) -> AttentionRequest:
    return AttentionRequest(
        device="cpu", dtype=torch.float64, batch=2, seqlen_q=seqlen_q, seqlen_k=seqlen_k, nheads=1, nheads_k=1,
        headdim=8, headdim_v=8, **options,
    )  # fmt: skip


def test_of_a_request() -> None:
    options: dict[str, Any] = {"causal": True, "window": (2, 4)}
    assert Geometry.of(request_for(3, 8, align="top_left", **options)) == Geometry(3, 8, 2, 0, 0)
    assert Geometry.of(request_for(3, 8, **options)) == Geometry(3, 8, 2, 0, 5)
    with pytest.raises(ValueError, match="offset"):
        Geometry.of(request_for(3, 8, align="offset", **options))


@pytest.mark.parametrize("align", ["top_left", "bottom_right"])
def test_the_example(align: Any) -> None:
    """A kernel without windows and alignments serves every call that equals a full or a square causal one."""
    served = 0
    for seqlen_q, seqlen_k, left, causal in itertools.product((1, 3, 5), (2, 4, 5), (None, 1, 9), (False, True)):
        request = request_for(seqlen_q, seqlen_k, window=(left, None), causal=causal, align=align)
        whole = Geometry.of(request)
        kept = whole.trimmed()
        if not (kept.full or (kept.left is None and kept.square)):
            continue
        served += 1
        q = torch.randn(2, seqlen_q, 1, 8, dtype=torch.float64)
        k, v = torch.randn(2, 2, seqlen_k, 1, 8, dtype=torch.float64)
        wanted = xattn.attention(q, k, v, window=(left, None), causal=causal, align=align, backend="reference")
        q = q[:, whole.first_q : whole.end_q]
        k, v = k[:, whole.first_k : whole.end_k], v[:, whole.first_k : whole.end_k]
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v, is_causal=kept.causal).transpose(1, 2)
        out = F.pad(out, (0, 0, 0, 0, whole.first_q, whole.seqlen_q - whole.end_q))
        torch.testing.assert_close(out, wanted)
    assert served > 15


@pytest.mark.parametrize("seqlen_q", SIZES[1:])
def test_a_shorter_row_from_the_bottom_right(seqlen_q: int) -> None:
    """With seqlens_k a plan knows the longest row alone."""
    for seqlen_k, left, right in itertools.product(SIZES[1:], SIDES, SIDES):
        for length in range(seqlen_k + 1):
            whole = Geometry(seqlen_q, seqlen_k, left, right, seqlen_k - seqlen_q)
            row = Geometry(seqlen_q, length, left, right, length - seqlen_q)
            opened = whole.opened()
            told = Geometry(seqlen_q, length, opened.left, opened.right, length - seqlen_q)
            assert visible_pairs(told) == visible_pairs(row), (whole, length)


@pytest.mark.parametrize("with_sinks", [False, True])
@pytest.mark.parametrize(("first_q", "end_q"), [(0, 5), (2, 5), (0, 3), (1, 2), (5, 5), (0, 0)])
def test_dead_rows(first_q: int, end_q: int, with_sinks: bool) -> None:
    out, lse = torch.full((2, 5, 3, 4), torch.nan), torch.full((2, 3, 5), torch.nan)
    sinks = torch.tensor([1.0, 2.0, -torch.inf]) if with_sinks else None
    fill_dead_rows(out, lse, first_q, end_q, sinks)
    dead = [i for i in range(5) if not first_q <= i < end_q]
    live = [i for i in range(5) if first_q <= i < end_q]
    assert (out[:, dead] == 0).all()
    wanted = torch.full((3,), -torch.inf) if sinks is None else sinks
    assert (lse[:, :, dead] == wanted[None, :, None]).all()
    for tensor in (out[:, live], lse[:, :, live]):
        assert tensor.isnan().all()


def test_dead_rows_without_lse() -> None:
    out = torch.full((1, 3, 1, 2), torch.nan)
    fill_dead_rows(out, None, 1, 3, None)
    assert (out[:, 0] == 0).all()
    assert out[:, 1:].isnan().all()


def test_symbolic_sizes() -> None:
    """One graph for every length, with no size made a constant."""

    def cut(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        whole = Geometry(q.shape[0], k.shape[0], 2, 0, k.shape[0] - q.shape[0])
        kept = whole.trimmed()
        return q[whole.first_q : whole.end_q], k[whole.first_k : whole.end_k] * kept.seqlen_k

    graphs = CompileCounter()
    compiled = torch.compile(cut, backend=graphs, dynamic=True, fullgraph=True)
    for seqlen_q, seqlen_k in ((3, 9), (4, 12), (5, 20)):
        q, k = torch.arange(seqlen_q), torch.arange(seqlen_k)
        for got, wanted in zip(compiled(q, k), cut(q, k), strict=True):
            assert torch.equal(got, wanted)
    assert graphs.frame_count == 1
