"""What `aiter-triton` passes to aiter for packed sequences and pages, and what it declines."""

from __future__ import annotations

from typing import Any

import pytest
import support
import torch
from rocm.aiter_triton_recorder import NEWEST, WHEEL
from torch import Tensor
from xattn_rocm import installation, vendor
from xattn_rocm.installation import Installation

import xattn
from xattn.plugin.devices import emulated
from xattn.testing import fresh

SINKS, SLOPES = torch.zeros(4), torch.ones(4)
UNIFIED = "aiter-triton.unified_attention"


class Given:
    """Stands for aiter's functions: keeps what it was given last."""

    _MHA_IMPL = "default"

    def flash_attn_varlen_func(self, q: Tensor, k: Tensor, v: Tensor, *bounds: Any, **options: Any) -> Any:
        self.last = {"bounds": bounds, **options}
        return torch.ones(*q.shape[:2], v.shape[2], dtype=q.dtype), torch.zeros(q.shape[:2])

    def unified_attention(self, **options: Any) -> None:
        self.last = options
        options["out"].fill_(1.0)


@pytest.fixture(name="aiter")
def an_aiter(monkeypatch: pytest.MonkeyPatch) -> Any:
    given = Given()
    monkeypatch.setitem(emulated, "cpu", ("rocm", "gfx942"))
    monkeypatch.setattr(installation, "overridden", NEWEST)
    monkeypatch.setattr(vendor, "module", lambda name: given)
    with fresh():
        yield given


def ints(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


def packed(headdim: int = 16, dtype: torch.dtype = torch.float16) -> tuple[Tensor, ...]:
    q, k, v = (torch.zeros(12, nheads, headdim, dtype=dtype) for nheads in (4, 2, 2))
    return q, k, v, ints(0, 5, 5, 12)


def paged(
    block_size: int = 16, one: bool = False, headdim: int = 16, headdim_v: int = 16, dtype: torch.dtype = torch.float16
) -> tuple[Tensor, ...]:
    k, v = (torch.zeros(8, block_size, 2, d, dtype=dtype) for d in (headdim, headdim_v))
    table, lengths = torch.arange(8, dtype=torch.int32).view(2, 4), ints(3 * block_size, 1)
    q = torch.zeros(2 if one else 7, 4, headdim, dtype=dtype)
    return (q, k, v, table, lengths) if one else (q, k, v, table, lengths, ints(0, 6, 7))


def test_sequences_come_from_the_last_to_the_first(aiter: Given) -> None:
    """triton-varlen-lse-overrun: between any two, and in place of one without queries, a length below 0."""
    xattn.varlen_attention(*packed(), causal=True, backend="aiter-triton")
    queries, keys = (x.tolist() for x in aiter.last["bounds"][:2])
    found = [(queries[n], queries[n + 1], keys[n], keys[n + 1]) for n in range(len(queries) - 1)]
    live = [each for each in found if each[1] >= each[0]]
    assert live == [(5, 12, 5, 12), (0, 5, 0, 5)]
    assert aiter.last["causal"] is True


def test_nothing_is_reordered_that_need_not_be(aiter: Given) -> None:
    args = packed()
    xattn.varlen_attention(*args, backend="aiter-triton")
    assert aiter.last["bounds"][0] is args[3]
    assert not {"out", "block_table"} & set(aiter.last)  # triton-varlen-ignores-out


def test_the_lse_is_turned_and_filled(aiter: Given) -> None:
    """triton-varlen-lse-layout, triton-varlen-dead-lse"""
    q, k, v, starts = packed()
    keys = ints(0, 2, 6, 6)
    _, lse = xattn.varlen_attention(q, k, v, starts, keys, causal=True, return_lse=True, backend="aiter-triton")
    assert lse.shape == (4, 12)
    assert lse[0].isinf().tolist() == [True] * 3 + [False] * 2 + [True] * 7


@pytest.mark.parametrize(
    ("installed", "options", "codes"),
    [
        (NEWEST, {"causal": True, "window": (3, None)}, set()),
        (NEWEST, {"window": (0, 0)}, {"window"}),
        (NEWEST, {"window": (None, 2)}, {"window"}),
        (WHEEL, {"window": (3, 0)}, {"window"}),
        (WHEEL, {"sinks": SINKS}, {"sinks"}),
        (NEWEST, {"sinks": SINKS, "alibi_slopes": SLOPES}, set()),
        (NEWEST, {"softcap": 1.0}, {"softcap"}),
        (NEWEST, {"causal": True, "align": 3}, {"offset"}),
    ],
    ids=support.named,
)
def test_what_of_packed_sequences_is_declined(
    aiter: Given, monkeypatch: pytest.MonkeyPatch, installed: Installation, options: dict[str, Any], codes: set[str]
) -> None:
    monkeypatch.setattr(installation, "overridden", installed)
    assert declined("varlen_attention", *packed(), **options) == codes


@pytest.mark.parametrize(
    ("options", "codes"),
    [
        ({"causal": True, "alibi_slopes": SLOPES}, set()),
        ({"window": (3, 0)}, {"window"}),
        ({"softcap": 1.0}, {"softcap"}),
    ],
    ids=support.named,
)
def test_what_of_the_backward_of_packed_sequences_is_declined(
    aiter: Given, options: dict[str, Any], codes: set[str]
) -> None:
    q, k, v, at = packed()
    assert declined("varlen_attention_backward", q, q, k, v, q, torch.zeros(4, 12), at, **options) == codes


def declined(op: str, *args: Tensor, backend: str = "aiter-triton", **options: Any) -> set[str]:
    found = xattn.explain(getattr(xattn, op), *args, backend=backend, **options)
    (candidate,) = [each for each in found.candidates if each.name == backend]
    return {reason.code for reason in candidate.reasons}


@pytest.mark.parametrize(
    ("sizes", "options", "codes"),
    [
        ({}, {"window": (3, 0), "softcap": 2.0, "sinks": SINKS}, set()),
        ({}, {"causal": False}, {"causal"}),
        ({"one": True}, {"causal": False, "out_dtype": torch.float32}, set()),
        ({}, {"causal": False, "window": (3, 1)}, {"window"}),
        ({}, {"alibi_slopes": SLOPES}, set()),
        ({}, {"alibi_slopes": SLOPES, "sinks": SINKS}, {"sinks"}),
        ({}, {"alibi_slopes": SLOPES.expand(2, 4)}, {"alibi_slopes"}),
        ({"headdim_v": 8}, {}, {"headdim_v"}),  # unified-headdim-v
        ({"dtype": torch.float32}, {}, {"dtype"}),
        ({}, {"return_lse": True}, {"return_lse"}),
        ({}, {"align": "top_left"}, {"top_left"}),
    ],
    ids=support.named,
)
def test_what_of_pages_is_declined(
    aiter: Given, sizes: dict[str, Any], options: dict[str, Any], codes: set[str]
) -> None:
    assert declined("paged_attention", *paged(**sizes), backend=UNIFIED, **options) == codes


@pytest.mark.parametrize("installed", [WHEEL, NEWEST], ids=["flat", "attention"])
@pytest.mark.parametrize("block_size", [1, 16, 24, 64, 128, 256])
@pytest.mark.parametrize("one", [False, True])
def test_no_tile_of_slots_that_may_be_nan_is_loaded_whole(
    aiter: Given, monkeypatch: pytest.MonkeyPatch, installed: Installation, block_size: int, one: bool
) -> None:
    """unified-unmasked-pages, unified-split-page-24, unified-decode-counts-rows. A tile has 64, 32 or 16 keys, and as
    many as a page where single queries are decoded."""
    monkeypatch.setattr(installation, "overridden", installed)
    args = paged(block_size, one)
    for unseen_finite in (False, True):
        xattn.paged_attention(*args, unseen_finite=unseen_finite, backend=UNIFIED)
        page, decodes = aiter.last["k"].shape[1], aiter.last["max_seqlen_q"] == 1
        assert decodes == (aiter.last["window_size"][0] < 0)
        if decodes:
            assert one
            assert page in (16, 32, 64) if installed == WHEEL or (unseen_finite and page <= 64) else page > 64
        elif not unseen_finite:
            assert page not in (16, 32, 64)
        if not decodes:
            assert aiter.last["sinks"].max() < -1e29  # unified-dead-rows


@pytest.mark.parametrize("unseen_finite", [False, True])
def test_the_table_begins_at_what_a_window_shows(aiter: Given, unseen_finite: bool) -> None:
    """unified-follows-dropped-pages"""
    q, k, v, table, lengths, starts = paged()
    table[0, :2] = -1
    xattn.paged_attention(q, k, v, table, lengths, starts, window=(4, 0), unseen_finite=unseen_finite, backend=UNIFIED)
    given = aiter.last
    first = 48 - 6 - 4  # of the first sequence, which begins in the page 2
    if unseen_finite:
        assert given["block_table"][0, 0] == 2
        assert given["seqused_k"].tolist() == [48 - 32, 1]
    else:
        assert given["block_table"][0, 0] == first  # in keys, of a table whose page 2 is the third
        assert given["seqused_k"].tolist() == [48 - first, 1]
    assert (given["block_table"][0, :1] >= 0).all()


def test_tables_are_made_once_a_step(aiter: Given) -> None:
    q, k, v, *batch = paged()
    step = xattn.PagedBatch(*batch)
    xattn.paged_attention(q, k, v, step, backend=UNIFIED)
    first = aiter.last["block_table"]
    xattn.paged_attention(q, k, v, step, backend=UNIFIED)
    assert aiter.last["block_table"] is first


def test_rows_of_no_sequence_are_0(aiter: Given, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aiter, "unified_attention", lambda **options: None)
    assert (xattn.paged_attention(*paged(), backend=UNIFIED) == 0).all()


def test_the_name_of_the_kernel_says_whether_it_may_split_the_keys(aiter: Given) -> None:
    """So that a fingerprint is another."""
    for one, finite, splits in ((True, True, True), (True, False, False), (False, True, False)):
        found = xattn.explain(xattn.paged_attention, *paged(64, one), unseen_finite=finite, backend=UNIFIED)
        assert str(found.kernel).endswith("which may split the keys") == splits, found
