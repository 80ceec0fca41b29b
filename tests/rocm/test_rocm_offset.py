"""An int `align`: a causal chunk within the keys, by way of bottom-right calls of fewer keys."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import xattn_rocm
from torch import Tensor
from xattn_elsewhere.aiter import standin
from xattn_rocm import installation, vendor
from xattn_rocm.installation import Installation

import xattn
from xattn import AttentionKernel, AttentionRequest
from xattn.plugin import TensorSpec
from xattn.plugin.devices import emulated
from xattn.plugin.offset import as_bottom_right
from xattn.testing import fresh

KERNELS = {
    type(kernel).__name__: kernel
    for backend in xattn_rocm.xattn_backends()
    for kernel in backend.kernels
    if kernel.op == "attention"
}
RELEASES = ("0.1.7.post2.dev18", "0.1.13", "0.1.18", "0.1.20.post1")
ARCHS = ("gfx942", "gfx950", "gfx90a", "gfx1250")


def installed(monkeypatch: pytest.MonkeyPatch, version: str = RELEASES[-1]) -> None:
    layout: Any = "flat" if version.startswith("0.1.7") else "attention"
    monkeypatch.setattr(installation, "overridden", Installation(Path(), version, layout))


def request_for(seqlen_q: int, seqlen_k: int, **changes: Any) -> AttentionRequest:
    given: dict[str, Any] = {
        "device": "rocm", "arch": "gfx942", "dtype": torch.bfloat16, "batch": 2, "nheads": 4, "nheads_k": 2,
        "headdim": 128, "headdim_v": 128, "causal": True, "align": "offset", "offset_inside": True,
    }  # fmt: skip
    return AttentionRequest(seqlen_q=seqlen_q, seqlen_k=seqlen_k, **{**given, **changes})


SINKS = {"sinks": TensorSpec((4,), torch.float32)}
OPTIONS: tuple[dict[str, Any], ...] = (
    {}, SINKS, {**SINKS, "return_lse": True}, {"softcap": 2.0}, {"alibi_slopes": TensorSpec((4,), torch.float32)},
    {"dropout_p": 0.1}, {"return_lse": True}, {"requires_grad": True}, {"deterministic": True},
)  # fmt: skip
SIZES: tuple[dict[str, Any], ...] = ({}, {"headdim": 64, "headdim_v": 64}, {"headdim": 192})


@pytest.mark.parametrize("version", RELEASES)
@pytest.mark.parametrize("name", KERNELS)
def test_what_is_accepted_is_served_at_every_offset(monkeypatch: pytest.MonkeyPatch, name: str, version: str) -> None:
    installed(monkeypatch, version)
    kernel, accepted = KERNELS[name], 0
    for arch, options, sizes, left in itertools.product(ARCHS, OPTIONS, SIZES, (None, 0, 3, 20)):
        changes = {"arch": arch, "window": None if left is None else (left, None), **options, **sizes}
        for seqlen_q, seqlen_k in ((1, 30), (2, 9), (129, 134)):
            request = request_for(seqlen_q, seqlen_k, **changes)
            if kernel.reasons(request):
                continue
            accepted += 1
            for fewer in range(seqlen_q, seqlen_k + 1):
                assert kernel.reasons(as_bottom_right(request, fewer)) == [], (request, fewer)
    assert accepted > 100


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize(
    "changes", [{"causal": False, "window": (4, 4)}, {"offset_inside": False}, {"window": (None, 2), "causal": False}]
)
def test_other_offsets_are_declined(monkeypatch: pytest.MonkeyPatch, name: str, changes: dict[str, Any]) -> None:
    installed(monkeypatch)
    assert [reason.code for reason in KERNELS[name].limits(request_for(16, 40, **changes))] == ["align"]


class Vendors:
    """aiter's functions: keep which keys they were given."""

    _MHA_IMPL = "default"

    def __init__(self) -> None:
        self.keys: list[list[int]] = []

    def flash_attn_func(self, q: Tensor, k: Tensor, v: Tensor, *rest: Any, **options: Any) -> Any:
        self.keys.append(k[0, :, 0, 0].int().tolist())
        out = torch.ones(*q.shape[:3], v.shape[3], dtype=q.dtype)
        return (out, torch.ones(q.shape[0], q.shape[2], q.shape[1])) if options.get("return_lse") else out

    def unified_attention(self, **options: Any) -> None:
        first = int(options["k"][0, 0, 0, 0])
        self.keys.append(list(range(first, first + int(options["seqused_k"][0]))))


@pytest.fixture
def vendors(monkeypatch: pytest.MonkeyPatch) -> Vendors:
    made = Vendors()
    monkeypatch.setattr(vendor, "module", lambda name: made)
    installed(monkeypatch)
    return made


@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
def test_one_plan_for_a_chunk_that_moves(vendors: Vendors, kernel: AttentionKernel) -> None:
    q = torch.zeros(2, 16, 4, 128, dtype=torch.bfloat16)
    k = torch.arange(40.0).view(1, 40, 1, 1).expand(2, 40, 2, 128).to(torch.bfloat16)
    request = request_for(16, 40, window=(8, None))
    assert kernel.limits(request) == []
    run = kernel.plan(request)
    for offset in (0, 5, 20, 24):
        assert run(q, k, k, align=offset).shape == q.shape
        # The window starts 8 keys before the first query's own, and the last query's own is the last key.
        assert vendors.keys[-1] == list(range(max(0, offset - 8), offset + 16))
    assert "aiter" in kernel.kernel_name(request)


@pytest.fixture
def gfx942(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The stand-in of an MI300X, for one test."""
    monkeypatch.setattr(installation, "overridden", None)
    monkeypatch.setitem(sys.modules, "aiter", None)
    standin.install("gfx942")
    with fresh():
        yield
    emulated.clear()


@pytest.mark.parametrize("offset", [0, 7, 24])
@pytest.mark.parametrize("options", [{}, {"window": (5, None)}, {"softcap": 2.0}], ids=str)
def test_aiters_answer_is_the_contracts(gfx942: None, options: dict[str, Any], offset: int) -> None:
    generator = torch.Generator().manual_seed(0)
    sizes = ((2, 16, 4, 64), (2, 40, 2, 64), (2, 40, 2, 64))
    q, k, v = (torch.randn(size, generator=generator).bfloat16() for size in sizes)
    wide = (x.double() for x in (q, k, v))
    want = xattn.attention(*wide, causal=True, align=offset, backend="reference", **options)
    # What no query sees may hold NaN.
    k[:, offset + 16 :], v[:, offset + 16 :] = torch.nan, torch.nan
    got = xattn.attention(q, k, v, causal=True, align=offset, backend="aiter", **options)
    torch.testing.assert_close(got.double(), want, rtol=2e-2, atol=2e-2)
