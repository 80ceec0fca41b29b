"""`paged_attention` by `aiter` over the stand-in: both tables of CK's, and what springs where they are passed on."""

from __future__ import annotations

import math
import sys
from typing import Any

import pytest
import torch
from support import extended
from torch import Tensor

import xattn
from xattn import AttentionOutput

ONE = pytest.mark.parametrize("arch", ["gfx942"], indirect=True)
# Decode, a prompt, a sequence of padding, more queries than keys; and a row of nobody.
STARTS, LENGTHS = torch.tensor([0, 1, 8, 8, 12], dtype=torch.int32), torch.tensor([37, 20, 0, 2], dtype=torch.int32)
SINKS = torch.tensor([3.0, -1.0, 0.5, 2.0])
Pages = tuple[Tensor, Tensor, Tensor, Tensor]


def paged(block_size: int, headdim_v: int = 64) -> Pages:
    """q, k_cache, v_cache, block_table, whose entries past the end are -1."""
    generator = torch.Generator().manual_seed(0)
    blocks = -(-64 // block_size) * 3
    q = torch.randn(13, 4, 64, generator=generator).bfloat16()
    k, v = (torch.randn(blocks, block_size, 2, size, generator=generator).bfloat16() for size in (64, headdim_v))
    columns = -(-40 // block_size)
    table = torch.randperm(blocks, generator=generator)[: columns * 2].view(2, -1).repeat(2, 1).int()
    used = -(-LENGTHS // block_size)
    return q, k, v, torch.where(torch.arange(columns) < used[:, None], table, -1)


def called(backend: str, pages: Pages, **options: Any) -> AttentionOutput:
    found: AttentionOutput = xattn.paged_attention(
        *pages, LENGTHS, STARTS, backend=backend, return_lse=True, unseen_finite=True, **options
    )
    return found


def check(pages: Pages, **options: Any) -> AttentionOutput:
    found, want = called("aiter", pages, **options), called("reference", pages, **options)
    torch.testing.assert_close(found.out, want.out, rtol=2e-2, atol=2e-2)
    torch.testing.assert_close(found.lse, want.lse, rtol=1e-3, atol=1e-3)
    return found


@ONE
@pytest.mark.parametrize("block_size", [16, 5, 1, *extended(1024, 64)])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"causal": False},
        {"window": (7, 0)},
        {"softcap": 1.5},
        {"sinks": SINKS},
        {"alibi_slopes": torch.tensor([0.5, 0.25, 0.125, 0.0625])},
        {"scale": 0.3, "causal": False, "window": (3, 2)},
    ],
    ids=str,
)
def test_each_option_by_both_tables(arch: str, block_size: int, options: dict[str, Any]) -> None:
    """prefill-page-sizes, prefill-follows-every-entry: an entry of -1 would be a fault of the GPU's."""
    found = check(paged(block_size), **options)
    assert (found.out[12:] == 0).all()
    assert (found.lse[:, 12:] == -math.inf).all()
    check(paged(block_size, headdim_v=32), **options)


@ONE
def test_a_step_of_one_query_each(arch: str) -> None:
    q, k, v, table = paged(16)
    for options in ({}, {"window": (5, 0)}, {"sinks": SINKS}):
        given: dict[str, Any] = {"unseen_finite": True, **options}
        found, want = (
            xattn.paged_attention(q[:4], k, v, table, LENGTHS, backend=backend, **given)
            for backend in ("aiter", "reference")
        )
        torch.testing.assert_close(found, want, rtol=2e-2, atol=2e-2)


@ONE
def test_the_traps_are_there(arch: str) -> None:
    q, k, v, table = paged(16)
    function = sys.modules["aiter"].mha_batch_prefill_func
    starts, zeros = STARTS, torch.zeros_like(STARTS)

    def passed(k: Tensor, v: Tensor, table: Tensor, **named: Any) -> Any:
        return function(q, k, v, starts, zeros, table.flatten(), 7, 37, block_table=table, seqlen_k=LENGTHS, **named)

    with pytest.raises(RuntimeError, match="Memory access fault"):
        passed(k, v, table, causal=True)
    fine = torch.nn.functional.pad(table.clamp_min(0), (0, 9))
    assert passed(k, v, fine, causal=True)[12:].isnan().all()
    with pytest.raises(RuntimeError, match="no matching kernel"):
        passed(k.view(24, 8, 2, 64), v.view(24, 8, 2, 64), fine)
    turned = k.transpose(1, 2).contiguous().transpose(1, 2)
    with pytest.raises(RuntimeError, match="must be >="):
        passed(turned, turned, fine)
    v = v.clone()
    v[fine[1, 1], 8] = math.nan  # of sequence 1, past its 20 keys
    assert passed(k, v, fine, causal=True)[1:8].isnan().any()
    with pytest.raises(xattn.UnsupportedError, match="unseen_finite=True"):
        xattn.paged_attention(q, k, v, table, LENGTHS, STARTS, backend="aiter")


@ONE
@pytest.mark.parametrize("block_size", [16, 5])
def test_pools_of_any_strides(arch: str, block_size: int) -> None:
    """prefill-strides"""
    q, k, v, table = paged(block_size)
    together = torch.stack((k, v), 1)
    heads = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (k, v)]
    check((q, together[:, 0], together[:, 1], table))
    check((q, heads[0], heads[1], table))


@ONE
def test_the_form_is_named_and_old_releases_have_one(arch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """prefill-no-block-table"""
    import xattn_rocm.installation as installed

    def named(block_size: int) -> str:
        given = (*paged(block_size), LENGTHS, STARTS)
        return str(xattn.explain(xattn.paged_attention, *given, unseen_finite=True, backend="aiter"))

    assert "(CK, by block_table)" in named(16)
    assert "(CK, by CSR of keys)" in named(5)
    old = installed.Installation(installed.usable().root, "0.1.8", "flat")
    monkeypatch.setattr(installed, "overridden", old)
    assert "(CK, by CSR of keys)" in named(16)


@pytest.mark.parametrize("arch", ["gfx950"], indirect=True)
def test_a_compiler_that_is_known_to_be_wrong(arch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """prefill-rocm72-gfx950"""
    monkeypatch.setattr(torch.version, "hip", "7.2.1")
    with pytest.raises(xattn.UnsupportedError, match="another ROCm"):
        called("aiter", paged(16))
    called("aiter", paged(16), softcap=3.0)


@pytest.mark.parametrize("arch", ["gfx90a"], indirect=True)
def test_large_pools_and_quantised_ones_are_declined(arch: str) -> None:
    """prefill-2-gib, prefill-fp8-in-fp8-alone"""
    q, k, _, table = paged(16)
    large = k[:1].expand(2**19, -1, -1, -1)
    with pytest.raises(xattn.UnsupportedError, match="less than 2 GiB"):
        called("aiter", (q, large, large, table))
    stored = k.to(torch.float8_e4m3fnuz)
    with pytest.raises(xattn.UnsupportedError, match="k_scale"):
        called("aiter", (q, stored, stored, table), k_scale=torch.ones(()), v_scale=torch.ones(()))
