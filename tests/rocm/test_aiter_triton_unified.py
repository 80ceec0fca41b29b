"""What `aiter-triton` passes to aiter's `unified_attention`. Its answers are `make test-aiter`'s matter."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from rocm.aiter_triton_recorder import BEFORE_WINDOWS, LAYOUTS, NEWEST, WHEEL, Copies, Given, an_aiter, call, qkv  # noqa: F401
from xattn_rocm import installation
from xattn_rocm.installation import Installation

from xattn.testing import fresh


@pytest.mark.parametrize("seqlen_k", [1, 9, 16, 64, 100, 300])
@pytest.mark.parametrize("seqlen_q", [1, 5])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=list(LAYOUTS))
@pytest.mark.parametrize("installed", [WHEEL, NEWEST], ids=["flat", "attention"])
def test_pages_lead_to_every_key_without_a_copy(
    aiter: Given, monkeypatch: pytest.MonkeyPatch, installed: Installation, layout: Any, seqlen_q: int, seqlen_k: int
) -> None:
    """Reads k as the kernel does: a page's place from the table, in units of the distance of two pages."""
    monkeypatch.setattr(installation, "overridden", installed)
    q, k, v = (layout(x) for x in qkv(seqlen_q, seqlen_k))
    q = q.contiguous()
    with Copies(1) as copies:
        out = call(q, k, v, causal=True, softcap=5.0)
    given = aiter.last
    assert not {"aten.clone.default", "aten.copy_.default", "aten._to_copy.default"} & set(copies.made)
    assert out.is_contiguous()
    pages, table = given["k"], given["block_table"]
    _, page, nheads_k, headdim = pages.shape
    storage = torch.as_strided(k, (k.untyped_storage().nbytes() // k.element_size(),), (1,), 0)
    alive = range(max(0, seqlen_q - seqlen_k), seqlen_q)
    assert given["seqused_k"].tolist() == [seqlen_k] * 2
    assert given["cu_seqlens_q"].tolist() == [0, seqlen_q, 2 * seqlen_q]
    for row in range(2):
        for key in range(seqlen_k):
            place = pages.storage_offset() + int(table[row, key // page]) * pages.stride(0)
            place += (key % page) * pages.stride(1) + pages.stride(2)
            assert torch.equal(storage[place : place + headdim], k[row, key, 1])
    assert nheads_k == 2
    assert (out[:, list(alive)] == 1).all()


def test_the_kernel_never_loads_a_page_past_the_last_key(aiter: Given, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tile as large as a page is loaded whole. A tile is 64 keys, 32 for wide heads, 16 elsewhere, and a page, of 64
    keys at most, where it decodes."""
    for installed in (WHEEL, BEFORE_WINDOWS, NEWEST):
        monkeypatch.setattr(installation, "overridden", installed)
        for seqlen_q in (1, 2, 300):
            for seqlen_k in (*range(1, 140), 256, 1000, 1024):
                with fresh():
                    call(*qkv(seqlen_q, seqlen_k, headdim=16), causal=True, softcap=5.0)
                given = aiter.last
                page = given["k"].shape[1]
                decodes, splits = given["max_seqlen_q"] == 1, given["window_size"][0] < 0
                # unified-tile-is-page
                tile = page if installed is not NEWEST else min(64, 2 ** math.ceil(math.log2(page)))
                tiles = {16, 32, 64} if not decodes else {tile}
                tiles |= {tile} if splits else set()
                assert not splits or seqlen_q == 1  # unified-hidden-tile-is-0
                assert seqlen_k % page == 0 or page not in tiles


def test_lengths_of_rows_are_passed_on_and_dead_queries_come_out_as_0(aiter: Given) -> None:
    lengths = torch.tensor([3, 64])
    out = call(*qkv(8, 64), causal=True, seqlens_k=lengths)
    assert aiter.last["seqused_k"].tolist() == [3, 64]
    assert (out[0, :5] == 0).all()
    assert (out[0, 5:] == 1).all()
    assert (out[1] == 1).all()


def test_a_graph_reads_tables_of_its_own(aiter: Given, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plan's may be gone when it is replayed, and those made while it is recorded are written by the replay."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    tensors, seen = qkv(8, 64), []
    for recording in (False, True, False):
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", [bool, lambda: True][recording])
        call(*tensors, causal=True, softcap=5.0)
        seen.append(aiter.last["block_table"])
    assert seen[0] is seen[2]
    assert seen[1] is not seen[0]


def test_what_the_kernel_reads_without_strides_is_contiguous(aiter: Given) -> None:
    """unified-reads-without-strides"""
    tensors = qkv(8, 64)
    sinks, lengths = torch.arange(8.0)[::2], torch.tensor([[20, 7], [64, 7]], dtype=torch.int32)[:, 0]
    call(*tensors, causal=True, softcap=5.0, sinks=sinks, seqlens_k=lengths)
    assert aiter.last["sinks"].is_contiguous()
    assert aiter.last["seqused_k"].is_contiguous()
    assert torch.equal(aiter.last["sinks"], sinks)
    assert torch.equal(aiter.last["seqused_k"], lengths)
    slopes = torch.arange(1.0, 9.0)[::2]
    call(*tensors, causal=True, softcap=5.0, alibi_slopes=slopes)
    assert aiter.last["alibi_slopes"].is_contiguous()
    assert torch.equal(aiter.last["alibi_slopes"], slopes)


@pytest.mark.parametrize("seqlen_k", [64, 576])
@pytest.mark.parametrize("installed", [WHEEL, BEFORE_WINDOWS])
def test_heads_that_are_no_power_of_2_are_not_split(
    aiter: Given, monkeypatch: pytest.MonkeyPatch, installed: Installation, seqlen_k: int
) -> None:
    """unified-split-of-odd-heads"""
    monkeypatch.setattr(installation, "overridden", installed)
    call(*qkv(1, seqlen_k, headdim=80))
    assert aiter.last["window_size"][0] >= 0
    call(*qkv(1, seqlen_k, headdim=64))
    assert (aiter.last["window_size"][0] < 0) is (seqlen_k % 16 == 0)


def test_keys_and_values_in_layouts_of_their_own_are_copied_once(aiter: Given) -> None:
    q, k, v = qkv(8, 64)
    call(q, LAYOUTS["heads first"](k), LAYOUTS["sequence first"](v), causal=True, softcap=5.0)
    assert aiter.last["k"].stride(1) == k.stride(1)
