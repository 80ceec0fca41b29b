"""What `aiter-triton` passes to aiter's logits of an indexer, and what it declines."""

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

FNUZ, FN = torch.float8_e4m3fnuz, torch.float8_e4m3fn


class Given:
    """Stands for aiter's module: keeps what it was given, and returns ones in rows that lie apart."""

    def fp8_mqa_logits(self, q: Tensor, k: Tensor, scales: Tensor, weights: Tensor, *ranges: Tensor) -> Tensor:
        self.starts, self.ends = ranges
        return torch.ones(len(q), 256)[:, : len(k)]


@pytest.fixture(name="aiter")
def an_aiter(monkeypatch: pytest.MonkeyPatch) -> Any:
    given = Given()
    monkeypatch.setitem(emulated, "cpu", ("rocm", "gfx942"))
    monkeypatch.setattr(installation, "overridden", NEWEST)
    monkeypatch.setattr(vendor, "module", lambda name: given)
    with fresh():
        yield given


def indexed(nheads: int = 16, headdim: int = 32, dtype: torch.dtype = FNUZ, scaled: bool = True) -> dict[str, Tensor]:
    starts, ends = (torch.tensor(each, dtype=torch.int32) for each in ([0, 3, -2], [2, 9, 99]))
    given = {"q": torch.zeros(3, nheads, headdim).to(dtype), "k": torch.zeros(9, headdim).to(dtype)}
    given |= {"weights": torch.zeros(3, nheads), "starts": starts, "ends": ends}
    return {**given, "k_scale": torch.ones(9)} if scaled else given


@pytest.mark.parametrize(("installed", "starts"), [(NEWEST, [0, 3, -2]), (WHEEL, [0, 0, 0])], ids=["newest", "wheel"])
def test_rows_lie_side_by_side_and_ranges_begin_where_they_may(
    aiter: Given, monkeypatch: pytest.MonkeyPatch, installed: Installation, starts: list[int]
) -> None:
    """mqa-logits-padded-rows, mqa-logits-unaligned-start"""
    monkeypatch.setattr(installation, "overridden", installed)
    out = xattn.mqa_logits(**indexed(), backend="aiter-triton")
    assert out.is_contiguous()
    assert aiter.starts.tolist() == starts
    assert aiter.ends.tolist() == [2, 9, 99]
    assert (out[1, :3] == -torch.inf).all() == (installed == WHEEL)


@pytest.mark.parametrize(
    ("arch", "installed", "given", "codes"),
    [
        ("gfx942", NEWEST, {}, set()),
        ("gfx950", WHEEL, {"dtype": FN}, set()),
        ("gfx950", NEWEST, {"dtype": FN}, {"arch"}),
        ("gfx942", NEWEST, {"dtype": FN}, {"dtype"}),
        ("gfx942", NEWEST, {"dtype": torch.bfloat16, "scaled": False}, {"dtype"}),
        ("gfx90a", NEWEST, {}, {"arch", "dtype"}),
        ("gfx942", NEWEST, {"nheads": 48}, {"nheads"}),  # mqa-logits-power-of-2
        ("gfx942", NEWEST, {"nheads": 8}, {"nheads"}),
        ("gfx942", NEWEST, {"headdim": 96}, {"headdim"}),
        ("gfx942", NEWEST, {"nheads": 128, "headdim": 128}, set()),
        ("gfx942", NEWEST, {"nheads": 128, "headdim": 256}, {"nheads"}),  # mqa-logits-lds
        ("gfx950", WHEEL, {"nheads": 128, "headdim": 256, "dtype": FN}, set()),
    ],
    ids=support.named,
)
def test_what_is_declined(
    aiter: Given, monkeypatch: pytest.MonkeyPatch, arch: str, installed: Installation, given: dict[str, Any],
    codes: set[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(installation, "overridden", installed)
    monkeypatch.setitem(emulated, "cpu", ("rocm", arch))
    found = xattn.explain(xattn.mqa_logits, **indexed(**given), backend="aiter-triton")
    (candidate,) = [each for each in found.candidates if each.name == "aiter-triton"]
    assert {reason.code for reason in candidate.reasons} == codes


def test_no_kernel_of_pages(aiter: Given) -> None:
    """paged-mqa-logits-one-key-more"""
    table, lengths = torch.zeros(1, 1, dtype=torch.int32), torch.ones(1, dtype=torch.int32)
    q, cache, weights = torch.zeros(1, 16, 32), torch.zeros(1, 4, 1, 32), torch.zeros(1, 16)
    with pytest.raises(xattn.UnsupportedError) as caught:
        xattn.paged_mqa_logits(q, cache, weights, table, lengths, max_seqlen_k=4, backend="aiter-triton")
    assert [reason.code for reason in caught.value.reasons["aiter-triton"]] == ["op"]
