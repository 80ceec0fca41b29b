"""Kernels that keep what they are given and compute nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch import Tensor
from xattn_neuron import installation, layout, vendor
from xattn_neuron.installation import Installation

import xattn
from xattn import Reason
from xattn.plugin.devices import emulated
from xattn.testing import fresh

SDK_2_29 = Installation(
    nki="0.3.0",
    neuronx_cc="2.24.5133.0",
    nkilib="2.24.5133.0",
    nxdi="0.9.17334",
    torch_neuronx="2.9.0.2.13",
    platform="trn2",
)


@pytest.fixture
def clean(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing of AWS's is installed for this test, and nothing is left of it."""
    monkeypatch.setattr(installation, "overridden", None)
    monkeypatch.setattr(vendor, "overridden", {})
    for name in ("NEURON_PLATFORM_TARGET_OVERRIDE", "NEURON_LOGICAL_NC_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    layout.copied.number = layout.copied.bytes = 0
    with fresh():
        yield
    emulated.clear()


@dataclass
class Given:
    """One launch of a kernel."""

    kernel: str
    grid: Any
    arguments: tuple[Any, ...]
    named: dict[str, Any]


@dataclass(frozen=True)
class Config:
    """Both FlashConfig, as far as the adapter sets them."""

    seq_tile_size: int
    training: bool = True


@dataclass
class Recorder:
    """AWS's kernels by the names of `vendor`'s functions. `launches`: what they were given."""

    launches: list[Given] = field(default_factory=list)

    @property
    def last(self) -> Given:
        return self.launches[-1]

    def kernels(self) -> dict[str, Any]:
        made = {name: Kernel(name, None, self) for name in ANSWERS}
        return {**made, "flash_config_nxdi": Config, "flash_config_legacy": Config}


@dataclass
class Kernel:
    name: str
    grid: Any
    recorder: Recorder

    def __getitem__(self, grid: Any) -> Kernel:
        return replace(self, grid=grid)

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        self.recorder.launches.append(Given(self.name, self.grid, arguments, named))
        return ANSWERS[self.name](*arguments, **named)


def _cte(q: Tensor, k: Tensor, v: Tensor, **named: Any) -> Any:
    out = torch.ones_like(q)
    if not named["cache_softmax"]:
        return out
    tiles = torch.arange(q.shape[1], dtype=torch.float32).view(-1, 128).t().expand(q.shape[0], -1, -1).contiguous()
    return out, -tiles, torch.ones_like(tiles)


def _bwd(q: Tensor, k: Tensor, v: Tensor, *rest: Any, **named: Any) -> Any:
    grads = tuple(map(torch.ones_like, (q, k, v)))
    sinks = named["sinks_ref"]
    return grads if sinks is None else (*grads, torch.ones_like(sinks))


def _flash_fwd(q: Tensor, k: Tensor, v: Tensor, *rest: Any, **named: Any) -> Any:
    out = torch.ones(*q.shape[:2], q.shape[3], q.shape[2], dtype=q.dtype)
    if not named["config"].training:
        return out
    rows = torch.arange(q.shape[3], dtype=torch.float32).view(-1, 128).t()
    return out, rows.expand(*q.shape[:2], -1, -1).contiguous()


def _flash_fwd_nxdi(q: Tensor, k: Tensor, v: Tensor, **named: Any) -> Any:
    return torch.ones(*q.shape[:2], q.shape[3], q.shape[2], dtype=q.dtype)


def _flash_attn_bwd(q: Tensor, k: Tensor, v: Tensor, *rest: Any, **named: Any) -> Any:
    return tuple(map(torch.ones_like, (q, k, v)))


ANSWERS: dict[str, Callable[..., Any]] = {
    "attention_cte": _cte,
    "attention_bwd": _bwd,
    "flash_fwd_legacy": _flash_fwd,
    "flash_fwd_nxdi": _flash_fwd_nxdi,
    "flash_attn_bwd_legacy": _flash_attn_bwd,
}

Install = Callable[..., Recorder]


@pytest.fixture
def aws(clean: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Put the recording kernels in place: of SDK 2.29 on a trn2 with one core to a logical one, or as it is said."""

    with ExitStack() as stack:

        def install(**changes: Any) -> Recorder:
            made = Recorder()
            monkeypatch.setattr(vendor, "overridden", made.kernels())
            monkeypatch.setattr(installation, "overridden", replace(SDK_2_29, **changes))
            emulated["cpu"] = ("neuron", "trn2")
            stack.enter_context(fresh())
            return made

        yield install


Reasons = Callable[..., dict[str, Reason]]


@pytest.fixture
def reasons(clean: None) -> Reasons:
    """Why a backend declines a call, by code."""

    def ask(backend: str, *tensors: Tensor, **options: Any) -> dict[str, Reason]:
        explained = xattn.explain(*tensors, backend=backend, **options)
        (candidate,) = [each for each in explained.candidates if each.name == backend]
        return {reason.code: reason for reason in candidate.reasons}

    return ask


@dataclass(frozen=True)
class Qkv:
    """Makes q, k and v: 2 batch rows, 4 heads over 2, headdim 64, bfloat16; values that tell rows and heads apart."""

    def __call__(
        self, seqlen_q: int = 128, seqlen_k: int | None = None, *, batch: int = 2, nheads: int = 4, headdim: int = 64,
        dtype: torch.dtype = torch.bfloat16,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        seqlen_k = seqlen_q if seqlen_k is None else seqlen_k
        generator = torch.Generator().manual_seed(0)
        shapes = ((batch, seqlen_q, nheads, headdim), *[(batch, seqlen_k, max(1, nheads // 2), headdim)] * 2)
        q, k, v = (torch.randn(shape, generator=generator).to(dtype) for shape in shapes)
        return q, k, v


@pytest.fixture
def qkv() -> Qkv:
    return Qkv()
