"""Which of aiter's kernels of paged attention serves a call, and what each declines."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import support
import torch
from rocm.aiter_triton_recorder import NEWEST, WHEEL
from torch import Tensor
from xattn_conformance.profiles.load import load
from xattn_conformance.running.selection import served
from xattn_conformance.running.target import TargetError, check_backend
from xattn_rocm import installation, vendor

import xattn
from xattn.plugin.devices import emulated
from xattn.testing import fresh

SLOPES = torch.ones(4)


@pytest.fixture(autouse=True)
def an_aiter(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(emulated, "cpu", ("rocm", "gfx942"))
    monkeypatch.setattr(installation, "overridden", NEWEST)
    with fresh():
        yield


def call(
    dtype: torch.dtype = torch.float32, one: bool = False, block_size: int = 16, headdim: int = 16,
    headdim_v: int | None = None, nheads: int = 4, keys: int = 40,
) -> tuple[Tensor, ...]:  # fmt: skip
    k, v = (torch.zeros(1, block_size, 2, d, dtype=dtype) for d in (headdim, headdim_v or headdim))
    table = torch.zeros(2, -(-keys // block_size), dtype=torch.int32)
    batch = (table, torch.tensor([keys, 1], dtype=torch.int32))
    q = torch.zeros(2 if one else 7, nheads, headdim, dtype=dtype)
    return (q, k, v, *batch) if one else (q, k, v, *batch, torch.tensor([0, 6, 7], dtype=torch.int32))


def explained(backend: str, sizes: dict[str, Any], options: dict[str, Any]) -> Any:
    return xattn.explain(xattn.paged_attention, *call(**sizes), backend=backend, **options)


HALF, FINITE = torch.float16, {"unseen_finite": True}


@pytest.mark.parametrize(
    ("sizes", "options", "kernel"),
    [
        ({"dtype": HALF}, {}, "unified_attention.unified_attention"),
        ({"dtype": HALF, "one": True}, FINITE, "unified_attention.unified_attention, which may split the keys"),
        # Key by key the unified kernel does not split them.
        ({"dtype": HALF, "one": True}, {}, "pa_decode.paged_attn_decode_v1"),
        ({"dtype": HALF, "one": True}, {"window": (3, 0)}, "unified_attention.unified_attention"),
        (
            {"dtype": HALF, "one": True, "block_size": 256},
            {},
            "unified_attention.unified_attention, which may split the keys",
        ),
        ({"one": True}, {}, "pa_decode.paged_attn_decode_v1"),
        ({"one": True, "keys": 1100}, {}, "pa_decode.paged_attn_decode_v2, which splits the keys"),
        ({"one": True, "nheads": 2}, {}, "pa_prefill.context_attention_fwd"),
        ({"one": True, "block_size": 24}, {}, "pa_prefill.context_attention_fwd"),
        ({}, {}, "pa_prefill.context_attention_fwd"),
        ({}, FINITE, "chunked_pa_prefill.chunked_prefill_paged_decode"),
        ({}, {"alibi_slopes": SLOPES}, "pa_prefill.context_attention_fwd"),
        ({}, {"softcap": 2.0}, "extend_attention.extend_attention_fwd"),
        ({"dtype": HALF, "headdim": 192, "headdim_v": 128}, {}, "extend_attention.extend_attention_fwd"),
    ],
    ids=str,
)
def test_which_kernel_a_call_gets(sizes: dict[str, Any], options: dict[str, Any], kernel: str) -> None:
    assert explained("aiter-triton", sizes, options).kernel == f"aiter.ops.triton.attention.{kernel}"


@pytest.mark.parametrize(
    ("name", "sizes", "options", "codes"),
    [
        ("pa_decode", {"one": True}, {"alibi_slopes": SLOPES, "out_dtype": torch.float32}, set()),
        ("pa_decode", {}, {}, {"cu_seqlens_q"}),
        ("pa_decode", {"one": True, "nheads": 2}, {}, {"nheads"}),  # pa-decode-values-without-other
        ("pa_decode", {"one": True, "headdim_v": 8}, {}, {"headdim_v"}),  # pa-decode-strides-of-keys
        # pa-decode-part-of-pages
        ("pa_decode", {"one": True, "block_size": 24}, {}, {"block_size"}),
        ("pa_decode", {"one": True, "headdim": 128, "block_size": 64}, {}, set()),
        ("pa_decode", {"one": True, "headdim": 128, "block_size": 128}, {}, {"block_size"}),
        ("pa_decode", {"one": True, "headdim": 128, "block_size": 128, "dtype": HALF}, {}, set()),
        ("pa_decode", {"one": True}, {"window": (3, 0)}, {"window"}),
        ("pa_prefill", {}, {"alibi_slopes": SLOPES}, set()),
        # prefill-window-is-a-number, prefill-alibi-drops-window
        ("pa_prefill", {}, {"window": (3, 0)}, {"window"}),
        ("pa_prefill", {}, {"window": (3, 0), "alibi_slopes": SLOPES}, {"window"}),
        # prefill-hides-before-it-scales
        ("pa_prefill", {}, {"scale": 0.0}, {"scale"}),
        ("pa_prefill", {}, {"scale": -1.0}, {"scale"}),
        ("pa_prefill", {}, {"causal": False}, {"causal"}),
        ("pa_prefill", {"one": True}, {"causal": False}, set()),
        ("pa_prefill", {}, {"alibi_slopes": SLOPES.expand(2, 4)}, {"alibi_slopes"}),
        ("chunked_prefill", {}, FINITE, set()),
        ("chunked_prefill", {}, {}, {"stale_pages"}),  # chunked-unmasked-pages
        ("chunked_prefill", {"dtype": HALF}, FINITE, {"dtype"}),  # chunked-rounds-products
        ("chunked_prefill", {"block_size": 24}, FINITE, {"block_size"}),
        ("chunked_prefill", {}, {**FINITE, "window": (3, 0)}, {"window"}),
        ("extend", {}, {"scale": -1.0}, set()),
        ("extend", {}, {"scale": 0.0}, {"scale"}),  # extend-scale-0
        ("extend", {"headdim": 256}, {}, {"headdim"}),  # extend-float32-lds
        ("extend", {"headdim": 192, "headdim_v": 128}, {}, set()),
        ("extend", {"headdim": 256, "dtype": HALF}, {}, set()),
        ("extend", {}, {"alibi_slopes": SLOPES}, {"alibi_slopes"}),
        ("extend", {}, {"return_lse": True}, {"return_lse"}),
        ("extend", {}, {"causal": False, "tree_mask": torch.ones(7, 6, dtype=torch.bool)}, set()),
        # extend-hidden-tile-is-nan
        ("extend", {}, {"max_seqlen_q": 33, "tree_mask": torch.ones(7, 33, dtype=torch.bool)}, {"tree_mask"}),
        ("pa_prefill", {}, {"tree_mask": torch.ones(7, 6, dtype=torch.bool)}, {"tree_mask"}),
    ],
    ids=support.named,
)
def test_what_a_kernel_declines(name: str, sizes: dict[str, Any], options: dict[str, Any], codes: set[str]) -> None:
    backend = f"aiter-triton.{name}"
    (candidate,) = [each for each in explained(backend, sizes, options).candidates if each.name == backend]
    assert {reason.code for reason in candidate.reasons} == codes


def test_extending_needs_a_launch_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    """extend-no-config"""
    monkeypatch.setitem(emulated, "cpu", ("rocm", "gfx1201"))
    with pytest.raises(xattn.UnsupportedError, match="gfx942, gfx950"):
        xattn.paged_attention(*call(), backend="aiter-triton.extend")


def test_the_wheel_has_its_modules_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installation, "overridden", WHEEL)
    assert explained("aiter-triton", {}, {}).kernel == "aiter.ops.triton.pa_prefill.context_attention_fwd"


def test_the_suite_can_judge_one_of_them() -> None:
    assert served("aiter-triton.pa_decode") == ("paged_attention",)
    assert load("aiter-triton.pa_decode", admitted=False).profile == load("aiter-triton", admitted=False).profile
    check_backend("aiter-triton.pa_decode")
    with pytest.raises(TargetError, match=r"aiter-triton\.pa_decode"):
        check_backend("aiter-triton.nothing")


class Decode:
    """Stands for aiter's module: keeps what each version was given."""

    triton = SimpleNamespace(language=SimpleNamespace(float32="float32"))

    def __init__(self) -> None:
        self.given: dict[str, tuple[Any, ...]] = {}

    def paged_attn_decode_v1(self, *given: Any) -> None:
        self.given["v1"] = given
        given[0].fill_(torch.nan)

    def paged_attn_decode_v2(self, *given: Any) -> None:
        self.given["v2"] = given
        given[0].fill_(torch.nan)


@pytest.mark.parametrize(("keys", "version"), [(40, "v1"), (1100, "v2")])
def test_what_decoding_passes(monkeypatch: pytest.MonkeyPatch, keys: int, version: str) -> None:
    """pa-decode-reads-scales-back, pa-decode-rounds-scaled-q, pa-decode-rounds-parts, pa-decode-length-0"""
    aiter = Decode()
    monkeypatch.setattr(vendor, "module", lambda name: aiter)
    q, k, v, table, lengths = call(HALF, one=True, keys=keys)
    lengths[1] = 0
    out = xattn.paged_attention(q, k, v, table, lengths, backend="aiter-triton.pa_decode")
    assert (list(aiter.given), out.dtype) == ([version], HALF)
    given = aiter.given[version]
    assert given[0].dtype == (HALF if version == "v1" else torch.float32)
    assert "float32" in given
    assert given[11:13] == (1.0, 1.0)
    assert (out[1] == 0).all()


@pytest.mark.parametrize("name", ["pa_prefill", "chunked_prefill"])
def test_what_context_attention_passes(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """chunked-prefill-scale, prefill-max-input-len"""
    given: dict[str, Any] = {}

    def keep(**arguments: Any) -> None:
        given.update(arguments)

    aiter = SimpleNamespace(context_attention_fwd=keep, chunked_prefill_paged_decode=keep)
    monkeypatch.setattr(vendor, "module", lambda name: aiter)
    xattn.paged_attention(*call(), backend=f"aiter-triton.{name}", unseen_finite=True)
    assert given["sm_scale"] == 0.25
    assert given["max_input_len" if name == "pa_prefill" else "max_query_len"] == 6


def test_latents_are_declined(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installation, "overridden", WHEEL)
    k, cache = torch.zeros(3, 1, 48), torch.zeros(4, 16, 1, 48)
    with pytest.raises(xattn.UnsupportedError, match="latent"):
        xattn.write_kv(k, None, cache, None, torch.arange(3), backend="aiter-triton")


@pytest.mark.parametrize(
    ("release", "dtype", "headdim", "block_size", "codes"),
    [
        (WHEEL, torch.float32, 16, 16, set()),
        (NEWEST, torch.bfloat16, 16, 16, set()),
        (NEWEST, torch.float16, 16, 16, {"dtype"}),  # fused-write-bfloat16-alone
        (WHEEL, torch.float16, 80, 24, {"headdim", "headdim_v", "block_size"}),  # fused-write-powers-of-2
    ],
    ids=support.named,
)
def test_what_writing_declines(
    monkeypatch: pytest.MonkeyPatch, release: Any, dtype: torch.dtype, headdim: int, block_size: int, codes: set[str]
) -> None:
    monkeypatch.setattr(installation, "overridden", release)
    k, v = torch.zeros(2, 3, 2, headdim, dtype=dtype)
    k_cache, v_cache = torch.zeros(2, 4, block_size, 2, headdim, dtype=dtype)
    found = xattn.explain(xattn.write_kv, k, v, k_cache, v_cache, torch.arange(3), backend="aiter-triton")
    (candidate,) = [each for each in found.candidates if each.name == "aiter-triton"]
    assert {reason.code for reason in candidate.reasons} == codes
