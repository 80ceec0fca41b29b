"""What the tests of `apply_rotary` by aiter share: the stand-in for aiter's rope, which keeps what it is given, and
tensors."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import xattn_rocm.installation
from torch import Tensor
from xattn_elsewhere.aiter import standin

import xattn
from xattn.plugin.devices import emulated
from xattn.testing import fresh

Calls = list[tuple[str, tuple[Any, ...]]]


@pytest.fixture(name="gfx942", autouse=True)
def a_gfx942(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The stand-in of an MI300X, for one test."""
    monkeypatch.setattr(xattn_rocm.installation, "overridden", None)
    monkeypatch.setitem(sys.modules, "aiter", None)
    standin.install("gfx942")
    with fresh():
        yield
    emulated.clear()


@pytest.fixture(name="calls")
def recorded_calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """What aiter's rope is called with."""
    made: Calls = []
    module = sys.modules["aiter"]
    for name in [name for name in vars(module) if name.startswith("rope_")]:
        monkeypatch.setattr(module, name, _recorded(made, name, getattr(module, name)))
    return made


def _recorded(made: Calls, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def record(*given: Any) -> Any:
        made.append((name, given))
        return function(*given)

    return record


def tensors(
    dtype: torch.dtype = torch.bfloat16, batched: bool = False, batch: int = 2, seqlen: int = 5, rotary_dim: int = 16
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(batch, seqlen, 4, 16, generator=generator).to(dtype)
    k = torch.randn(batch, seqlen, 2, 16, generator=generator).to(dtype)
    rows = (batch, seqlen) if batched else (seqlen,)
    cos, sin = (torch.randn(*rows, rotary_dim // 2, generator=generator) for _ in range(2))
    return q, k, cos, sin


def right(q: Tensor, k: Tensor | None, cos: Tensor, sin: Tensor, interleaved: bool) -> tuple[Tensor, Tensor | None]:
    """In float64, rounded once, as the stand-in has it."""
    wide_k = None if k is None else k.double()
    x, y = xattn.apply_rotary(
        q.double(), wide_k, cos.double(), sin.double(), interleaved=interleaved, backend="reference"
    )
    return x.to(q.dtype), None if y is None else y.to(q.dtype)
