"""Decoding over pages in a format by `aiter` over the stand-in: aiter's choice, its table, and what springs."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
import xattn_rocm.installation as installed
from torch import Tensor

import xattn
from xattn.cache import FormattedCache, PagedKVCache

FP8 = {"gfx942": torch.float8_e4m3fnuz, "gfx950": torch.float8_e4m3fn}
GFX9 = pytest.mark.parametrize("arch", ["gfx942", "gfx950"], indirect=True)
ONE = pytest.mark.parametrize("arch", ["gfx942"], indirect=True)
TABLE = torch.tensor([[3, 0, -1], [1, 4, 2], [-1, -1, -1]], dtype=torch.int32)
LENGTHS = torch.tensor([20, 48, 0], dtype=torch.int32)
Call = dict[str, Any]


def step(
    dtype: torch.dtype, group: int = 8, headdim: int = 128, format: Any = "asm", queries: Any = torch.bfloat16
) -> Call:
    """A step of three sequences, the last of padding, over pages that were written once."""
    torch.manual_seed(0)
    cache = PagedKVCache(5, 16, 2, headdim, dtype=dtype, format=format)
    k, v = torch.randn(2, 80, 2, headdim).to(queries)
    with xattn.use_backend("reference"):
        cache.write(0, k, v, torch.arange(80))
    return {
        "q": torch.randn(3, 2 * group, headdim).to(queries), "k_cache": cache.k[0], "v_cache": cache.v[0],
        "block_table": TABLE, "seqlens_k": LENGTHS, "unseen_finite": True, **cache.scales(0),
    }  # fmt: skip


def check(call: Call, said: str, **options: Any) -> Tensor:
    named = str(xattn.explain(xattn.paged_attention, **call, backend="aiter", **options))
    assert said in named
    found, want = (xattn.paged_attention(**call, backend=backend, **options) for backend in ("aiter", "reference"))
    torch.testing.assert_close(found, want, rtol=2e-2, atol=2e-2)
    assert (found[2] == 0).all()
    return found  # type: ignore[no-any-return]


@GFX9
@pytest.mark.parametrize("group", [3, 8, 16])
def test_quantised_pages_go_to_the_assembly(arch: str, group: int) -> None:
    check(step(torch.int8, group), "aiter.pa_fwd_asm (ASM)")
    check(step(FP8[arch], group, queries=torch.float16), "(ASM, high_precision=1)")


@GFX9
def test_the_choice_is_aiters(arch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """pa-common-drops-scale: many sequences go to the assembly, few to HIP, and another scale to HIP all the same."""
    few = step(torch.bfloat16)
    check(few, "aiter.paged_attention_rocm (HIP)")
    check(few, "(HIP)", alibi_slopes=torch.linspace(0.1, 0.9, 16))
    rows = 64
    many = {**few, "q": few["q"][:1].expand(rows, -1, -1), "block_table": TABLE[:1].expand(rows, -1).contiguous()}
    many["seqlens_k"] = LENGTHS[:1].expand(rows).contiguous()
    for scale, said in (
        (None, "pa_fwd_asm (ASM)"),
        (128**-0.5, "pa_fwd_asm (ASM)"),
        (0.3, "paged_attention_rocm (HIP)"),
    ):
        assert said in str(xattn.explain(xattn.paged_attention, **many, scale=scale, backend="aiter"))
    check(step(torch.float16, headdim=64, queries=torch.float16), "(HIP)", scale=0.2)
    check(step(torch.bfloat16, format="vllm"), "(HIP)")


@ONE
def test_the_precision_is_of_the_environment_and_of_the_name(arch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """pa-asm-kernels: level 2 of groups of 8 alone."""
    monkeypatch.setenv("XATTN_AITER_HIGH_PRECISION", "2")
    check(step(FP8[arch]), "high_precision=2")
    with pytest.raises(xattn.UnsupportedError, match="XATTN_AITER_HIGH_PRECISION=2"):
        check(step(FP8[arch], group=16), "")
    monkeypatch.setenv("XATTN_AITER_HIGH_PRECISION", "3")
    with pytest.raises(xattn.UnsupportedError, match="supported: 0, 1 or 2"):
        check(step(FP8[arch], group=3), "")  # another kind of call: a plan keeps the level that it was made with


@ONE
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"scale": 0.3}, "1/sqrt\\(128\\)"),
        ({"k_scale": torch.ones(())}, "num_blocks, block_size, nheads_k"),
        ({"k_scale": torch.ones(5, 16, 1), "v_scale": torch.ones(5, 16, 1)}, "num_blocks, block_size, nheads_k"),
        ({"q": torch.randn(3, 48, 128).bfloat16()}, "aiter's table for gfx942"),
        ({"window": (3, 0)}, "window"),
        ({"unseen_finite": False}, "unseen_finite=True"),
        ({"cu_seqlens_q": torch.tensor([0, 1, 2, 3], dtype=torch.int32)}, "one query a sequence"),
    ],
    ids=["scale", "scale of tensor", "scale of tokens", "group", "window", "stale", "several queries"],
)
def test_what_neither_serves_is_declined(arch: str, change: Call, said: str) -> None:
    """pa-asm-has-no-scale, pa-asm-scales, pa-asm-kernels; and pa-hip-rounds-queries, where HIP could not help."""
    call = {**step(torch.int8), **change}
    with pytest.raises(xattn.UnsupportedError, match=said):
        xattn.paged_attention(**call, backend="aiter")


@ONE
def test_fp8_of_another_arch_and_releases_that_cut_blocks(arch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """pa-asm-block-65536, pa-asm-any-headdim"""
    with pytest.raises(xattn.UnsupportedError, match="what FP8 is on gfx942"):
        xattn.paged_attention(**step(torch.float8_e4m3fn), backend="aiter")
    with pytest.raises(xattn.UnsupportedError, match="128 and 128"):
        xattn.paged_attention(**step(torch.int8, headdim=64), backend="aiter")
    monkeypatch.setattr(installed, "overridden", installed.Installation(installed.usable().root, "0.1.16", "attention"))
    blocks = 2**16 + 1
    memories = torch.zeros(1, dtype=torch.int8).expand(blocks * 16 * 128).clone()
    call = {
        **step(torch.int8), "k_cache": FormattedCache(memories.view(blocks, 1, 8, 16, 16), "asm", "k"),
        "v_cache": FormattedCache(memories.view(blocks, 1, 1, 128, 16), "asm", "v"),
        "k_scale": torch.ones(1).expand(blocks, 16, 1), "v_scale": torch.ones(1).expand(blocks, 16, 1),
    }  # fmt: skip
    with pytest.raises(xattn.UnsupportedError, match="up to 65536"):
        xattn.paged_attention(**call, backend="aiter")


@ONE
def test_the_traps_are_there(arch: str) -> None:
    """pa-asm-shuffled-values, pa-asm-scales, pa-length-0, pa-hip-rounds-queries"""
    call, module = step(torch.int8), sys.modules["aiter"]
    k, v, lengths = call["k_cache"], call["v_cache"], LENGTHS
    table = torch.nn.functional.pad(TABLE.clamp_min(0), (0, 9))
    scales = [call[name].transpose(1, 2).contiguous() for name in ("k_scale", "v_scale")]
    want = xattn.paged_attention(**call, backend="reference").float()

    def off(values: Tensor, own: list[Any], of: Call = call, want: Tensor = want) -> float:
        keys = of["k_cache"].memory
        out = module.pa_fwd_asm(of["q"], keys, values, table, lengths, table.stride(0), 1, *own)
        assert out[2].isnan().all()
        return float((out[:2].float() - want[:2]).abs().max())

    assert off(v.memory, scales) < 0.02
    halves = step(torch.bfloat16)
    plain, right = halves["v_cache"].numbers(), xattn.paged_attention(**halves, backend="reference").float()
    assert off(halves["v_cache"].memory, [None, None], halves, right) < 0.02
    assert off(FormattedCache.made(plain, "vllm", "v").memory, [None, None], halves, right) > 0.2
    assert off(v.memory, [call["k_scale"].contiguous(), call["v_scale"].contiguous()]) > 0.02
    assert off(v.memory, [None, None]) > 1
    with pytest.raises(RuntimeError, match="Memory access fault"):
        module.pa_fwd_asm(call["q"], k.memory, v.memory, TABLE[2:], lengths[1:2], 3, 1, *scales)
    with pytest.raises(RuntimeError, match="only supports head_size=128"):
        module.pa_fwd_asm(call["q"][..., :64], k.memory, v.memory, table, lengths, table.stride(0))


@GFX9
@pytest.mark.parametrize("format", ["vllm", "asm"])
def test_writing(arch: str, format: Any) -> None:
    """cache-multiplies-by-the-inverse, cache-flash-strides"""
    torch.manual_seed(0)
    k, v = torch.randn(2, 4, 2, 64).bfloat16()
    slots = torch.tensor([37, -1, 3, 16])
    found, want = [], PagedKVCache(3, 16, 2, 64, dtype=torch.bfloat16)
    with xattn.use_backend("reference"):
        want.write(0, k, v, slots)
    for given in ((k, v), (k.transpose(0, 1).contiguous().transpose(0, 1), v)):
        cache = PagedKVCache(3, 16, 2, 64, dtype=torch.bfloat16, format=format)
        xattn.write_kv(*given, cache.k[0], cache.v[0], slots, backend="aiter")
        found += [(cache.k[0].numbers(), want.k[0]), (cache.v[0].numbers(), want.v[0])]
    assert all(torch.equal(*pair) for pair in found)
    stored = PagedKVCache(3, 16, 2, 64, dtype=torch.int8, format=format)
    with pytest.raises(xattn.UnsupportedError, match="k_scale"):
        xattn.write_kv(k, v, stored.k[0], stored.v[0], slots, **stored.scales(0), backend="aiter")
    with pytest.raises(xattn.UnsupportedError, match="the distance of two pages"):
        xattn.write_kv(k, v, want.k[0], want.v[0], slots, backend="aiter")
