"""What `aiter-triton` passes to aiter for latents, and what it declines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from xattn_rocm import installation, vendor
from xattn_rocm.aiter_triton.mla_attention.pages import PrefillMla
from xattn_rocm.installation import Installation

import xattn
from xattn.plugin.devices import emulated
from xattn.testing import fresh

FILES = ("unified_attention_sparse_mla", "mla", "mla_decode")


class Given:
    """Stands for aiter's functions: keeps what it was given last."""

    def __getattr__(self, name: str) -> Any:
        def function(**options: Any) -> None:
            self.last = {"name": name, **options}
            for result in ("out", "o", "lse"):
                if result in options:
                    options[result].fill_(1.0)

        return function


@pytest.fixture(name="aiter")
def an_aiter(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    given = Given()
    folder = tmp_path / "ops" / "triton" / "attention"
    folder.mkdir(parents=True)
    for name in FILES:
        (folder / f"{name}.py").touch()
    monkeypatch.setitem(emulated, "cpu", ("rocm", "gfx942"))
    monkeypatch.setattr(installation, "overridden", Installation(tmp_path, "0.1.20.post1", "attention"))
    monkeypatch.setattr(vendor, "module", lambda name: given)
    with fresh():
        yield given


def ints(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


def call(one: bool = True, nheads: int = 16, width: int = 48, block_size: int = 16, **options: Any) -> dict[str, Any]:
    """Of two sequences, the second without keys."""
    cache = torch.zeros(8, block_size, 1, width, dtype=torch.bfloat16)
    q = torch.zeros(2 if one else 7, nheads, width, dtype=torch.bfloat16)
    parts = {} if one else {"cu_seqlens_q": ints(0, 5, 7)}
    table = torch.arange(8, dtype=torch.int32).view(2, 4)
    named = {"scale": 0.1, "kv_lora_rank": width // 3 * 2 if width < 100 else 512, "backend": "aiter-triton"}
    return {
        "q": q, "kv_cache": cache, "block_table": table, "seqlens_k": ints(20, 0), **parts, **named, **options,
    }  # fmt: skip


def reasons(**options: Any) -> list[str]:
    (found,) = [
        each for each in xattn.explain(xattn.mla_attention, **call(**options)).candidates if each.name == "aiter-triton"
    ]
    return [reason.code for reason in found.reasons]


@pytest.mark.parametrize(
    ("options", "kernel"),
    [
        ({"unseen_finite": True}, "mla_decode_fwd"),
        ({"unseen_finite": True, "one": False}, "mla_prefill_fwd"),  # triton-mla-ragged
        ({}, "decode_attention_fwd"),  # triton-mla-unmasked-pages
        ({"return_lse": True, "softcap": 2.0, "block_size": 5}, "decode_attention_fwd"),
        ({"causal": False, "unseen_finite": True}, "decode_attention_fwd"),
    ],
)
def test_the_kernel_that_a_call_gets(aiter: Any, options: dict[str, Any], kernel: str) -> None:
    if kernel == "decode_attention_fwd":
        options = {"width": 48, **options}
    xattn.mla_attention(**call(**options))
    assert aiter.last["name"] in (kernel, "mla_decode_fwd" if "causal" in options else kernel)


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"one": False}, "stale_pages"),  # triton-mla-unmasked-pages
        ({"one": False, "softcap": 2.0, "return_lse": True}, "cu_seqlens_q"),
        ({"one": False, "unseen_finite": True, "block_size": 48}, "block_size"),
        ({"one": False, "unseen_finite": True, "width": 60}, "kv_lora_rank"),
        ({"sinks": torch.zeros(16)}, "sinks"),
        ({"topk_indices": torch.zeros(2, 1, dtype=torch.int32), "nheads": 20}, "nheads"),  # triton-sparse-mla-heads
        ({"topk_indices": torch.zeros(2, 1, dtype=torch.int32), "return_lse": True}, "return_lse"),
    ],
)
def test_what_is_declined(aiter: Any, options: dict[str, Any], code: str) -> None:
    assert code in reasons(**options)


def test_a_cache_whose_elements_32_bits_do_not_count(aiter: Any) -> None:
    """triton-mla-decode-32-bit-offsets"""
    large = torch.zeros(1, 1, 1, 48, dtype=torch.bfloat16).expand(2**22, 16, 1, 48)
    assert reasons(kv_cache=large, softcap=2.0, return_lse=True) == ["num_blocks"]
    assert reasons(softcap=2.0, return_lse=True) == []


def test_causal_cannot_be_switched_off(aiter: Any) -> None:
    """triton-mla-causal-alone"""
    request = xattn.explain(xattn.mla_attention, **call(one=False, causal=False)).request
    assert isinstance(request, xattn.MlaRequest)
    assert [reason.code for reason in PrefillMla().limits(request)] == ["causal"]


def test_sequences_without_keys_get_0_and_no_lse(aiter: Any) -> None:
    """triton-mla-dead-rows"""
    out, lse = xattn.mla_attention(**call(return_lse=True))
    assert (out[0] == 1).all()
    assert (out[1] == 0).all()
    assert (lse[:, 1] == -torch.inf).all()
    for options in ({"unseen_finite": True}, {"unseen_finite": True, "one": False}):
        out = xattn.mla_attention(**call(**options))
        dead = slice(1, None) if "one" not in options else slice(5, None)
        assert (out[dead] == 0).all()
        assert (out[: dead.start] == 1).all()


@pytest.mark.parametrize(("width", "dtype"), [(48, torch.bfloat16), (576, torch.float32)])
def test_wide_queries_go_in_as_float32(aiter: Any, width: int, dtype: torch.dtype) -> None:
    """triton-mla-decode-narrow-products"""
    xattn.mla_attention(**call(width=width))
    assert aiter.last["q"].dtype == dtype


@pytest.mark.parametrize("block_size", [3, 16, 100])
def test_lists_begin_with_a_slot_and_pages_are_tiles(aiter: Any, block_size: int) -> None:
    """triton-sparse-mla-none-first, triton-sparse-mla-tile-is-page"""
    lists = torch.tensor([[-1, 7, -1, 3], [-1, -1, -1, -1]], dtype=torch.int32)
    out = xattn.mla_attention(**call(block_size=block_size, topk_indices=lists))
    given = aiter.last
    assert given["topk_indices"].tolist() == [[7, -1, -1, 3], [-1, -1, -1, -1]]
    assert given["kv"].shape[1] == (16 if block_size == 3 else 64)
    assert lists[0, 0] == -1
    assert (out[0] == 1).all()
    assert (out[1] == 0).all()
