"""What differs between releases of aiter, as the `aiter` backend meets it."""

from __future__ import annotations

import pytest
import torch
from rocm.aiter_recorder import Install, a_clean_process, a_vendor, call, qkv, reasons  # noqa: F401
from torch import Tensor


@pytest.mark.parametrize(("version", "asked"), [("0.1.17", False), ("0.1.20", True), ("0.1.21", False)])
def test_lse_is_asked_for_where_opus_raises(vendor: Install, version: str, asked: bool) -> None:
    """opus-type-error"""
    made = vendor("gfx950", version)
    assert isinstance(call(*qkv(headdim=192, headdim_v=128)), Tensor)
    assert made.given[10] is asked


@pytest.mark.parametrize(("version", "window"), [("0.1.19", (87_381, -1)), ("0.1.20", (-1, -1))])
def test_keys_of_4_gib_are_kept_off_asm_where_they_wrap(vendor: Install, version: str, window: tuple[int, int]) -> None:
    """v3-wraps-at-4-gib"""
    made = vendor("gfx942", version)
    row = torch.zeros(1, 1, 1, 192, dtype=torch.bfloat16)
    k = row.expand(1, 87_382, 128, 192)
    call(row.expand(1, 160, 128, 192), k, k[..., :128])
    assert made.given[6] == window


@pytest.mark.parametrize(
    ("version", "declined"), [("0.1.7.post5", True), ("0.1.10.post3", True), ("0.1.17", True), ("0.1.18", False)]
)
def test_sinks_want_a_release_that_tells_ck(vendor: Install, version: str, declined: bool) -> None:
    vendor(version=version)
    assert ("sinks" in reasons(*qkv(), sinks=torch.zeros(4))) is declined


def test_an_old_release_is_kept_off_asm_where_there_is_none(vendor: Install) -> None:
    made = vendor("gfx90a", "0.1.15")
    call(*qkv(), causal=True)
    assert made.given[5:7] == (True, (159, 0))
    made = vendor("gfx90a", "0.1.16")
    call(*qkv(), causal=True)
    assert made.given[5:7] == (True, (-1, -1))


def test_the_oldest_release_would_drop_a_softcap(vendor: Install) -> None:
    made = vendor("gfx942", "0.1.7.post2.dev18")
    call(*qkv(), softcap=2.0)
    assert made.given[12] == (159, -1)
