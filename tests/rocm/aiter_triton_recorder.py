"""What the tests of the `aiter-triton` backend share: aiter's functions, which keep what they are given, tensors, and
calls."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from xattn_rocm import installation, vendor
from xattn_rocm.installation import Installation

import xattn
from xattn.plugin.devices import emulated
from xattn.testing import fresh

WHEEL = Installation(Path("/aiter"), "0.1.7.post2.dev18", "flat")
NEWEST = Installation(Path("/aiter"), "0.1.20.post1", "attention")
BEFORE_WINDOWS = Installation(Path("/aiter"), "0.1.11.post1", "attention")
BEFORE_SINKS_GRADIENT = Installation(Path("/aiter"), "0.1.13", "attention")


class Given:
    """Stands for both of aiter's functions: keeps what it is given, and answers with numbers of the right shape."""

    _MHA_IMPL = "default"

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []

    def flash_attn_func(self, q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Any:
        self.calls.append({"q": q, "k": k, "v": v, **options})
        out = torch.ones(*q.shape[:3], v.shape[3], dtype=q.dtype)
        return (out, torch.ones(q.shape[0], q.shape[2], q.shape[1])) if options["return_lse"] else out

    def unified_attention(self, **options: Any) -> None:
        self.calls.append(options)
        options["out"].fill_(1.0)

    @property
    def last(self) -> dict[str, Any]:
        return self.calls[-1]


@pytest.fixture(name="aiter")
def an_aiter(monkeypatch: pytest.MonkeyPatch) -> Iterator[Given]:
    given = Given()
    monkeypatch.setitem(emulated, "cpu", ("rocm", "gfx942"))
    monkeypatch.setattr(installation, "overridden", NEWEST)
    monkeypatch.setattr(vendor, "module", lambda name: given)
    with fresh():
        yield given


def qkv(
    seqlen_q: int = 64, seqlen_k: int | None = None, nheads: int = 4, nheads_k: int = 2, headdim: int = 64,
    headdim_v: int | None = None, dtype: torch.dtype = torch.float16, grad: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    seqlen_k = seqlen_q if seqlen_k is None else seqlen_k
    shapes = ((seqlen_q, nheads, headdim), (seqlen_k, nheads_k, headdim), (seqlen_k, nheads_k, headdim_v or headdim))
    q, k, v = (torch.randn(2, *shape, dtype=dtype, requires_grad=grad) for shape in shapes)
    return q, k, v


def call(*tensors: Tensor, **options: Any) -> Any:
    return xattn.attention(*tensors, backend="aiter-triton", **options)


def reasons(installed: Installation, arch: str, sizes: dict[str, Any], options: dict[str, Any]) -> set[str]:
    """The codes of what stops the call on a release and an arch."""
    patch = pytest.MonkeyPatch()
    with patch.context() as patched:
        patched.setitem(emulated, "cpu", ("rocm", arch))
        patched.setattr(installation, "overridden", installed)
        found = xattn.explain(*qkv(**sizes), backend="aiter-triton", **options)
    (candidate,) = [each for each in found.candidates if each.name == "aiter-triton"]
    assert all(reason.want and reason.got != reason.want for reason in candidate.reasons)
    return {reason.code for reason in candidate.reasons}


class Copies(TorchDispatchMode):
    """Notes every operator that writes as much as a tensor of the call holds."""

    def __init__(self, least: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.least = least
        self.made: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        returned = function(*args, **(kwargs or {}))
        large = isinstance(returned, Tensor) and returned.numel() >= self.least
        if large and not function.is_view and "empty" not in str(function):
            self.made.append(str(function))
        return returned


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x.contiguous(),
    "heads first": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
    "sequence first": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
    "cut out": lambda x: torch.cat([x, x], 3)[..., : x.shape[3]],
    "packed": lambda x: torch.stack([x, x, x], 2)[:, :, 1],
}
