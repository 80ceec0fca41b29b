"""What the `aiter` backend declines, before anything of aiter is imported, and what `explain` says."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
import xattn_rocm.installation
from rocm.aiter_recorder import ABSENT, MATRIX, Install, a_clean_process, a_vendor, qkv, reasons  # noqa: F401

import xattn
from xattn.plugin.devices import emulated


# What is declined: the code of a reason, and what must stand in it.
@pytest.mark.parametrize(
    ("arch", "options", "sizes", "code", "said"),
    [
        ("gfx942", {"scale": 0.0}, {}, "scale", "before it scales"),
        ("gfx942", {"scale": -0.5}, {}, "scale", "before it scales"),
        ("gfx942", {"softcap": 2.0}, {"seqlen_q": 1}, "softcap", "issues/2229"),
        ("gfx942", {"softcap": 2.0, "sinks": torch.zeros(4)}, {}, "sinks", "softcap"),
        ("gfx942", {"softcap": 2.0, "alibi_slopes": torch.ones(4)}, {}, "softcap", "alibi_slopes"),
        ("gfx942", {"softcap": 2.0, "bias": MATRIX}, {}, "softcap", "bias"),
        ("gfx942", {"bias": torch.zeros(160, 160)}, {}, "bias", "bfloat16"),
        ("gfx942", {"bias": torch.zeros(2, 1, 160, 160).bfloat16()}, {}, "bias", "(160, 160)"),
        ("gfx942", {"bias": torch.zeros(1, 4, 160, 160).bfloat16()}, {}, "bias", "(160, 160)"),
        ("gfx942", {"bias": torch.zeros(160).bfloat16()}, {}, "bias", "(160, 160)"),
        ("gfx942", {"bias": torch.zeros(160, 1).bfloat16()}, {}, "bias", "(160, 160)"),
        ("gfx942", {"bias": MATRIX, "alibi_slopes": torch.ones(4)}, {}, "bias", "room for one"),
        ("gfx942", {"alibi_slopes": torch.ones(4)}, {"seqlen_k": 65537}, "alibi_slopes", "65536"),
        ("gfx942", {"window": (3, 20)}, {"seqlen_k": 20}, "window", "below seqlen_k"),
        ("gfx942", {"sinks": torch.zeros(4)}, {"seqlen_k": 1}, "kernel", "ASM v3"),
        ("gfx950", {"window": (0, None)}, {"seqlen_k": 100}, "kernel", "ASM v3"),
        ("gfx1100", {}, {}, "arch", "gfx942"),
        ("gfx942", {"mask": torch.ones(160, 160, dtype=torch.bool)}, {}, "mask", "off"),
        ("gfx942", {"seqlens_k": torch.tensor([3, 4])}, {}, "seqlens_k", "off"),
        ("gfx942", {"causal": True, "align": "top_left"}, {"seqlen_k": 200}, "top_left", "off"),
        # fp32-builds-then-fails
        ("gfx942", {}, {"dtype": torch.float32}, "dtype", "float16"),
        ("gfx942", {}, {"headdim": 264}, "headdim", "256"),
    ],
)  # fmt: skip
def test_what_is_declined(
    vendor: Install, arch: str, options: dict[str, Any], sizes: dict[str, Any], code: str, said: str
) -> None:
    vendor(arch)
    found = reasons(*qkv(**sizes), **options)
    assert said in str(found[code])


@pytest.mark.parametrize(
    "options",
    [
        {"sinks": torch.zeros(4)},
        {"softcap": 2.0},
        {"bias": MATRIX},
        {"sinks": torch.zeros(4, requires_grad=True)},
    ],
)
def test_forward_only(vendor: Install, options: dict[str, Any]) -> None:
    vendor()
    q, k, v = qkv()
    (name,) = options
    assert name in reasons(q.requires_grad_(), k, v, **options)


def test_without_aiter_the_reason_says_so_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    emulated["cpu"] = ("rocm", "gfx942")
    monkeypatch.setattr(xattn_rocm.installation, "_found", lambda: ABSENT)
    assert reasons(*qkv(), scale=0.0) == {"aiter": ABSENT}


def test_asking_imports_nothing_of_aiter(vendor: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    vendor()
    monkeypatch.delitem(sys.modules, "aiter")
    assert reasons(*qkv(), causal=True, sinks=torch.zeros(4)) == {}
    assert "aiter" not in sys.modules


@pytest.mark.parametrize(
    ("name", "value", "options"),
    [
        ("ENABLE_CK", "0", {}),
        ("AITER_TRITON_ONLY", "1", {}),
        ("GPU_ARCHS", "gfx942;gfx90a", {}),
        ("CK_TILE_ATTENTION_LOGITS_SOFT_CAP_DEFAULT", "1", {"softcap": 2.0}),
    ],
)
def test_settings_that_change_aiter(
    vendor: Install, monkeypatch: pytest.MonkeyPatch, name: str, value: str, options: dict[str, Any]
) -> None:
    vendor()
    assert reasons(*qkv(), **options) == {}
    monkeypatch.setenv(name, value)
    assert name in str(reasons(*qkv(), **options)["environment"])


@pytest.mark.parametrize("value", ["native", "gfx942", "gfx950;gfx942"])
def test_settings_that_leave_aiter_as_it_is(vendor: Install, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    vendor()
    monkeypatch.setenv("GPU_ARCHS", value)
    assert reasons(*qkv()) == {}


@pytest.mark.parametrize(
    ("arch", "options", "wanted"),
    [
        ("gfx942", {"causal": True}, "aiter.flash_attn_func (ASM v3)"),
        ("gfx90a", {"causal": True}, "aiter.flash_attn_func (CK)"),
        ("gfx1250", {}, "aiter.flash_attn_func (ASM fmha_fwd_with_sink)"),
        ("gfx942", {"softcap": 2.0}, "aiter.flash_attn_varlen_func (CK)"),
    ],
)
def test_explain_names_the_kernel(vendor: Install, arch: str, options: dict[str, Any], wanted: str) -> None:
    vendor(arch)
    explained = xattn.explain(*qkv(), backend="aiter", **options)
    (candidate,) = [each for each in explained.candidates if each.name == "aiter"]
    assert candidate.kernel == wanted


def test_explain_names_the_backward_kernel_too(vendor: Install) -> None:
    vendor("gfx950")
    q, k, v = qkv()
    explained = xattn.explain(q.requires_grad_(), k, v, deterministic=True, backend="aiter")
    (candidate,) = [each for each in explained.candidates if each.name == "aiter"]
    assert candidate.kernel == "aiter.flash_attn_func (ASM v3; backward: ASM v3)"
