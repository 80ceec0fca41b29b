"""What `aiter-triton` declines, and the order of `auto`."""

from __future__ import annotations

from typing import Any

import pytest
import support
import torch
from rocm.aiter_triton_recorder import (  # noqa: F401
    BEFORE_SINKS_GRADIENT,
    BEFORE_WINDOWS,
    NEWEST,
    WHEEL,
    Given,
    an_aiter,
    qkv,
    reasons,
)
from torch import Tensor
from xattn_rocm import installation, xattn_backends
from xattn_rocm.installation import Installation

import xattn
from xattn import AttentionRequest

BACKENDS = {backend.name: backend for backend in xattn_backends()}
SINKS = torch.zeros(4)
SLOPES = torch.ones(4)
LENGTHS = torch.tensor([3, 64])
LSE = {"return_lse": True}
SINGLE = {"dtype": torch.float32}


@pytest.mark.parametrize(
    ("rule", "installed", "arch", "sizes", "options", "codes"),
    [
        ("triton-mha-no-window", WHEEL, "gfx942", {}, {"window": (16, None)}, {"window"}),
        ("triton-mha-no-window", WHEEL, "gfx942", {}, {"window": (16, 0), **LSE}, {"window"}),
        ("triton-mha-no-window", BEFORE_WINDOWS, "gfx942", {}, {"window": (16, 0), **LSE}, {"window"}),
        ("triton-mha-no-window", NEWEST, "gfx942", {}, {"window": (16, 0), **LSE}, set()),
        ("triton-mha-no-sinks", WHEEL, "gfx942", {}, {"sinks": SINKS, **LSE}, {"sinks"}),
        ("triton-mha-no-sinks", NEWEST, "gfx942", {}, {"sinks": SINKS, **LSE}, set()),
        ("triton-left-0-is-full", NEWEST, "gfx942", {}, {"window": (0, None)}, {"window"}),
        ("triton-left-0-is-full", NEWEST, "gfx942", {}, {"window": (0, 0), **LSE}, {"window"}),
        ("triton-left-0-is-full", NEWEST, "gfx942", {}, {"window": (0, 0)}, set()),
        ("triton-no-right-window", NEWEST, "gfx942", {}, {"window": (None, 3)}, {"window"}),
        ("triton-no-right-window", NEWEST, "gfx942", {}, {"window": (None, 3), "causal": True}, set()),
        ("triton-no-bias", NEWEST, "gfx942", {}, {"bias": torch.zeros(64, 64, dtype=torch.float16)}, {"bias"}),
        ("triton-pads-v-by-q", NEWEST, "gfx942", {"headdim": 96, "headdim_v": 72}, {}, {"headdim_v"}),
        ("triton-pads-v-by-q", NEWEST, "gfx942", {"headdim": 192, "headdim_v": 128}, {}, set()),
        ("triton-pads-v-by-q", NEWEST, "gfx942", {"headdim": 64, "headdim_v": 128}, {}, {"headdim_v"}),
        ("triton-padded-gradients", NEWEST, "gfx942", {"headdim": 20, "grad": True}, {}, set()),
        ("triton-backward-odd-headdim", WHEEL, "gfx942", {"headdim": 80, "grad": True}, {}, {"headdim_v"}),
        ("triton-backward-odd-headdim", WHEEL, "gfx942", {"headdim": 8, "grad": True}, {}, {"headdim_v"}),
        ("triton-backward-odd-headdim", WHEEL, "gfx942", {"headdim": 80}, {}, set()),
        ("triton-backward-odd-headdim", NEWEST, "gfx942", {"headdim": 80, "grad": True}, {}, set()),
        ("triton-no-config", WHEEL, "gfx90a", {}, LSE, {"arch"}),
        ("triton-no-config", NEWEST, "gfx1201", {}, LSE, {"arch"}),
        ("triton-no-config-gfx1250", NEWEST, "gfx1250", {}, LSE, set()),
        ("triton-no-config-gfx1250", BEFORE_WINDOWS, "gfx1250", {}, LSE, {"arch"}),
        ("triton-no-config-gfx1151", NEWEST, "gfx1151", {}, LSE, set()),
        ("triton-no-config-gfx1151", BEFORE_SINKS_GRADIENT, "gfx1151", {}, LSE, {"arch"}),
        ("unknown-arch", NEWEST, "gfx9999", {"seqlen_q": 1}, {}, {"arch"}),
        ("unified-always-causal", NEWEST, "gfx942", {}, {"softcap": 5.0}, {"softcap"}),
        ("unified-always-causal", NEWEST, "gfx942", {}, {"softcap": 5.0, "causal": True}, set()),
        ("unified-always-causal", NEWEST, "gfx942", {"seqlen_q": 1, "seqlen_k": 64}, {"softcap": 5.0}, set()),
        ("unified-no-fp32", NEWEST, "gfx942", SINGLE, {"softcap": 5.0, "causal": True}, {"softcap"}),
        ("triton-float32-lds", NEWEST, "gfx942", {**SINGLE, "headdim": 192, "headdim_v": 128}, {}, {"headdim_v"}),
        ("triton-float32-lds", NEWEST, "gfx950", {**SINGLE, "headdim": 192, "headdim_v": 128}, {}, set()),
        ("triton-float32-lds", NEWEST, "gfx942", {**SINGLE, "headdim": 192, "grad": True}, {}, {"headdim"}),
        ("triton-float32-lds", NEWEST, "gfx942", {**SINGLE, "headdim": 128, "grad": True}, {}, set()),
    ],
)  # fmt: skip
def test_rules(
    rule: str, installed: Installation, arch: str, sizes: dict[str, Any], options: dict[str, Any], codes: set[str]
) -> None:
    assert reasons(installed, arch, sizes, options) == codes


def sinks_with_gradient() -> Tensor:
    return torch.zeros(4, requires_grad=True)


@pytest.mark.parametrize(
    ("installed", "codes"),
    [(WHEEL, {"sinks", "grad_sinks"}), (BEFORE_SINKS_GRADIENT, {"grad_sinks"}), (NEWEST, set())],
)
def test_the_gradient_of_sinks_is_noise_before_0_1_14(installed: Installation, codes: set[str]) -> None:
    """triton-sinks-gradient-noise"""
    assert reasons(installed, "gfx942", {"grad": True}, {"sinks": sinks_with_gradient()}) == codes


@pytest.mark.parametrize(
    ("options", "codes"),
    [
        ({"softcap": 5.0, "causal": True, **LSE}, {"softcap"}),
        ({"seqlens_k": LENGTHS, "causal": True}, set()),
        ({"seqlens_k": LENGTHS, "causal": True, "window": (16, 0)}, {"seqlens_k"}),
        ({"seqlens_k": LENGTHS}, {"seqlens_k"}),
        ({"softcap": 5.0, "causal": True, "alibi_slopes": SLOPES}, set()),
        ({"softcap": 5.0, "causal": True, "alibi_slopes": SLOPES.expand(2, 4)}, {"softcap"}),
        ({"softcap": 5.0, "causal": True, "alibi_slopes": SLOPES, "sinks": SINKS}, {"softcap"}),
        ({"dropout_p": 0.1}, {"dropout_p"}),
        ({"mask": torch.ones(64, 64, dtype=torch.bool)}, {"mask"}),
    ],
    ids=support.named,
)
def test_what_neither_kernel_has(options: dict[str, Any], codes: set[str]) -> None:
    assert reasons(NEWEST, "gfx942", {}, options) >= codes
    assert bool(reasons(NEWEST, "gfx942", {}, options)) is bool(codes)


@pytest.mark.parametrize(
    ("arch", "own"),
    [("gfx942", "float8_e4m3fnuz"), ("gfx950", "float8_e4m3fn"), ("gfx1201", "float8_e4m3fn"), ("gfx90a", "none")],
)
@pytest.mark.parametrize("backend", ["aiter", "aiter-triton"])
def test_fp8_is_declined_and_named_by_arch(monkeypatch: pytest.MonkeyPatch, backend: str, arch: str, own: str) -> None:
    monkeypatch.setattr(installation, "overridden", NEWEST)
    asked = AttentionRequest(
        device="rocm", arch=arch, dtype=torch.float8_e4m3fn, batch=1, seqlen_q=64, seqlen_k=64, nheads=4, nheads_k=4,
        headdim=64, headdim_v=64,
    )  # fmt: skip
    for kernel in BACKENDS[backend].kernels:
        if kernel.op == "attention":
            found = {reason.code: reason for reason in kernel.reasons(asked)}
            assert {"dtype", "fp8"} <= set(found)
            assert found["fp8"].hint.endswith(f"aiter's fp8 on {arch}: {own}.")


def test_the_gradient_of_sinks_is_not_deterministic() -> None:
    """triton-sinks-gradient-atomics"""
    sinks = sinks_with_gradient()
    assert reasons(NEWEST, "gfx942", {"grad": True}, {"sinks": sinks, "deterministic": True}) == {"deterministic"}
    assert reasons(NEWEST, "gfx942", {"grad": True}, {"sinks": SINKS, "deterministic": True}) == set()


def test_auto_takes_aiter_before_sdpa(aiter: Given) -> None:
    ordered = [candidate.name for candidate in xattn.explain(*qkv()).candidates]
    assert ordered.index("aiter") < ordered.index("aiter-triton") < ordered.index("sdpa")
