"""What the tests of the `aiter` backend share: an aiter that keeps what it is given, tensors, and calls."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import xattn_rocm.installation
from torch import Tensor
from xattn_elsewhere.aiter import standin
from xattn_rocm.installation import Installation

import xattn
from xattn import Reason
from xattn.plugin.devices import emulated
from xattn.testing import fresh

MATRIX = torch.zeros(160, 160, dtype=torch.bfloat16)
ABSENT = Reason("aiter", "nothing", "aiter")


@pytest.fixture(name="clean", autouse=True)
def a_clean_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(xattn_rocm.installation, "overridden", None)
    for name in ("ENABLE_CK", "AITER_TRITON_ONLY", "GPU_ARCHS", "CK_TILE_ATTENTION_LOGITS_SOFT_CAP_DEFAULT"):
        monkeypatch.delenv(name, raising=False)
    with fresh():
        yield
    emulated.clear()


class Vendor:
    """aiter's functions, which keep what they were given and compute nothing."""

    def __init__(self) -> None:
        self.given: tuple[Any, ...] = ()
        self.named: dict[str, Any] = {}

    def flash_attn_func(self, *given: Any, **named: Any) -> Any:
        self.given, self.named = given, named
        q, v = given[0], given[2]
        out = torch.ones(*q.shape[:3], v.shape[3], dtype=q.dtype)
        lse = torch.ones(q.shape[0], q.shape[2], q.shape[1])
        if any(x.requires_grad for x in given[:3]) and torch.is_grad_enabled():
            out = out + 0 * q.sum()
        return (out, lse) if given[10] else out

    def flash_attn_varlen_func(self, *given: Any) -> Any:
        self.given = given
        q, v = given[0], given[2]
        out = torch.ones(*q.shape[:2], v.shape[2], dtype=q.dtype)
        return (out, torch.ones(q.shape[1], q.shape[0])) if given[16] else out


Install = Callable[..., Vendor]


@pytest.fixture(name="vendor")
def a_vendor(monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Put the recording aiter in place, on an arch and in a release."""
    with ExitStack() as stack:

        def install(arch: str = "gfx942", version: str = standin.VERSION) -> Vendor:
            made = Vendor()
            module = ModuleType("aiter")
            module.__dict__.update(
                flash_attn_func=made.flash_attn_func, flash_attn_varlen_func=made.flash_attn_varlen_func
            )
            monkeypatch.setitem(sys.modules, "aiter", module)
            layout: Any = "flat" if version.startswith("0.1.7") else "attention"
            monkeypatch.setattr(xattn_rocm.installation, "overridden", Installation(Path(), version, layout))
            emulated["cpu"] = ("rocm", arch)
            stack.enter_context(fresh())
            return made

        yield install


def qkv(
    seqlen_q: int = 160, seqlen_k: int = 160, headdim: int = 128, headdim_v: int = 0, nheads: int = 4,
    dtype: torch.dtype = torch.bfloat16,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    q = torch.zeros(2, seqlen_q, nheads, headdim, dtype=dtype)
    k = torch.zeros(2, seqlen_k, 2, headdim, dtype=dtype)
    return q, k, torch.zeros(2, seqlen_k, 2, headdim_v or headdim, dtype=dtype)


def call(*tensors: Tensor, **options: Any) -> Any:
    return xattn.attention(*tensors, backend="aiter", **options)


def reasons(*tensors: Tensor, **options: Any) -> dict[str, Reason]:
    """Why the backend declines, by code."""
    explained = xattn.explain(*tensors, backend="aiter", **options)
    (candidate,) = [each for each in explained.candidates if each.name == "aiter"]
    return {reason.code: reason for reason in candidate.reasons}
