"""What `aiter-triton` passes to aiter's HSTU, and what it declines."""

from __future__ import annotations

from typing import Any

import pytest
import support
import torch
from rocm.aiter_triton_recorder import NEWEST
from torch import Tensor
from xattn_rocm import installation, vendor

import xattn
from xattn.plugin.devices import emulated
from xattn.testing import fresh

CALL = {"norm": 64.0, "scale": 0.25}


class Given:
    """Stands for aiter's module: keeps what it was given, and returns ones, in rows of no sequence as well."""

    def triton_hstu_attention_fwd(self, n: int, scale: float, q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> Tensor:
        self.forward = (n, scale, *rest)
        return torch.ones_like(v)

    def triton_hstu_attention_bwd(self, dout: Tensor, *rest: Any) -> None:
        self.dout, self.backward = dout, rest[6:]


@pytest.fixture(name="aiter")
def an_aiter(monkeypatch: pytest.MonkeyPatch) -> Any:
    given = Given()
    monkeypatch.setitem(emulated, "cpu", ("rocm", "gfx942"))
    monkeypatch.setattr(installation, "overridden", NEWEST)
    monkeypatch.setattr(vendor, "module", lambda name: given)
    with fresh():
        yield given


def packed(headdim: int = 16, headdim_v: int = 16, dtype: torch.dtype = torch.float16) -> tuple[Tensor, ...]:
    q, k, v = (torch.zeros(14, 4, width, dtype=dtype) for width in (headdim, headdim, headdim_v))
    return q, k, v, torch.tensor([0, 5, 5, 12], dtype=torch.int32)


def test_the_arguments_are_aiters(aiter: Given) -> None:
    *qkv, starts = packed()
    leaves = [x.requires_grad_() for x in qkv]
    targets = torch.tensor([1, 0, 2], dtype=torch.int32)
    options: dict[str, Any] = {
        **CALL,
        "num_targets": targets,
        "max_attn_len": 3,
        "contextual_seqlen": 2,
        "backend": "aiter-triton",
    }
    out = xattn.hstu_attention(*leaves, starts, **options)
    n, scale, at, causal, given_targets, limit, contextual, order = aiter.forward
    assert (n, scale, causal, limit, contextual, order) == (64, 0.25, True, 3, 2, None)
    assert at is starts
    assert given_targets is targets
    assert (out[:12] == 1).all()
    assert (out[12:] == 0).all()  # hstu-rows-of-no-sequence
    out.sum().backward()
    assert aiter.backward[2:] == (64, 0.25, 3, True, 2, None)


def test_sequences_beyond_the_norm_have_half_of_it(aiter: Given) -> None:
    """hstu-n-is-bound-and-divisor. A plan of one bucket serves lengths on both sides of the norm."""
    *qkv, starts = packed()
    leaves = [x.requires_grad_() for x in qkv]
    for longest, n, value in ((7, 7, 1), (8, 14, 2)):
        out = xattn.hstu_attention(
            *leaves, starts, norm=7.0, scale=1.0, max_seqlen=longest, backend="aiter-triton"
        )  # fmt: skip
        assert aiter.forward[0] == n
        assert out[0, 0, 0] == value
        out.sum().backward()
        assert aiter.dout[0, 0, 0] == value


@pytest.mark.parametrize(
    ("sizes", "options", "codes"),
    [
        ({}, {"causal": False, "contextual_seqlen": 1}, set()),
        ({"headdim_v": 64}, {"deterministic": True}, set()),
        ({"headdim": 48}, {}, {"headdim"}),  # hstu-power-of-2
        ({"headdim_v": 8}, {}, {"headdim_v"}),
        ({"dtype": torch.float64}, {}, {"dtype"}),
        ({}, {"norm": 7.5}, {"norm"}),
        ({}, {"norm": 4.0}, {"norm"}),
        ({}, {"norm": 5.0}, set()),
        ({}, {"max_attn_len": 0}, {"max_attn_len"}),  # hstu-limit-0-is-off
    ],
    ids=support.named,
)
def test_what_is_declined(aiter: Given, sizes: dict[str, Any], options: dict[str, Any], codes: set[str]) -> None:
    assert declined(*packed(**sizes), **options) == codes


@pytest.mark.parametrize(
    ("options", "codes"),
    [
        ({}, set()),
        ({"causal": False}, {"grad_qkv"}),  # hstu-full-gradients
        ({"contextual_seqlen": 65}, set()),
        ({"contextual_seqlen": 64, "max_attn_len": 9}, set()),
        ({"contextual_seqlen": 65, "max_attn_len": 9}, {"grad_qkv"}),  # hstu-contextual-limit-gradients
        ({"deterministic": True}, {"deterministic"}),
    ],
    ids=support.named,
)
def test_what_of_gradients_is_declined(aiter: Given, options: dict[str, Any], codes: set[str]) -> None:
    q, k, v, _ = packed()
    starts = torch.tensor([0, 0], dtype=torch.int32)
    assert declined(q.requires_grad_(), k, v, starts, **{"max_seqlen": 80, "norm": 128.0, **options}) == codes


@pytest.mark.parametrize(("arch", "codes"), [("gfx942", {"headdim"}), ("gfx950", set())])
def test_gradients_that_do_not_fit(aiter: Given, monkeypatch: pytest.MonkeyPatch, arch: str, codes: set[str]) -> None:
    """hstu-float32-lds"""
    monkeypatch.setitem(emulated, "cpu", ("rocm", arch))
    q, k, v, starts = packed(256, 256, torch.float32)
    assert declined(q, k, v, starts) == set()
    assert declined(q.requires_grad_(), k, v, starts) == codes


@pytest.mark.parametrize("arch", ["gfx90a", "gfx1201", None])
def test_archs_without_a_configuration(aiter: Given, monkeypatch: pytest.MonkeyPatch, arch: str | None) -> None:
    monkeypatch.setitem(emulated, "cpu", ("rocm", arch))
    assert declined(*packed()) == {"arch"}


def declined(*args: Tensor, **options: Any) -> set[str]:
    found = xattn.explain(xattn.hstu_attention, *args, backend="aiter-triton", **{**CALL, **options})
    (candidate,) = [each for each in found.candidates if each.name == "aiter-triton"]
    return {reason.code for reason in candidate.reasons}
