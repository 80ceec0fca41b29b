"""What `aiter-triton` passes to aiter's `mha.flash_attn_func`. Its answers are `make test-aiter`'s matter."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from rocm.aiter_triton_recorder import LAYOUTS, Copies, Given, an_aiter, call, qkv  # noqa: F401


@pytest.mark.parametrize(
    ("options", "sizes", "wanted"),
    [
        ({}, {}, {"causal": False}),
        ({"causal": True}, {}, {"causal": True}),
        # The 0 that causal implies to the right is what aiter refuses: it is left to causal.
        ({"window": (16, 0)}, {}, {"causal": True, "window_size": (16, -1)}),
        ({"window": (16, None)}, {}, {"causal": False, "window_size": (16, -1)}),
        ({"window": (63, 63)}, {}, {"causal": False}),
        ({"scale": 0.0}, {}, {"softmax_scale": 0.0}),
        ({}, {"headdim": 16}, {"softmax_scale": 0.25}),
    ],
    ids=str,
)
def test_what_mha_is_given(
    aiter: Given, options: dict[str, Any], sizes: dict[str, Any], wanted: dict[str, Any]
) -> None:
    call(*qkv(**sizes), return_lse=True, **options)
    given = {name: value for name, value in aiter.last.items() if name in ("causal", "window_size", "softmax_scale")}
    assert given == {"causal": False, "softmax_scale": 0.125, **wanted}


def test_dead_rows_have_no_lse_and_no_out(aiter: Given) -> None:
    """triton-dead-row-lse"""
    out, lse = call(*qkv(64, 40), causal=True, return_lse=True)
    assert (lse[:, :, :24] == -math.inf).all()
    assert (lse[:, :, 24:] == 1).all()
    assert (out[:, :24] == 0).all()
    assert (out[:, 24:] == 1).all()


def test_the_lse_of_a_dead_row_is_the_sink(aiter: Given) -> None:
    sinks = torch.tensor([0.5, -1.0, 2.0, 0.0])
    _, lse = call(*qkv(64, 40), causal=True, return_lse=True, sinks=sinks)
    assert torch.equal(lse[:, :, 0], sinks.expand(2, 4))


def test_a_switched_implementation_is_an_error(aiter: Given) -> None:
    """triton-global-switches"""
    aiter._MHA_IMPL = "dao_ai"
    with pytest.raises(RuntimeError, match="mha_set_impl"):
        call(*qkv(), return_lse=True)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=list(LAYOUTS))
@pytest.mark.parametrize("options", [{"return_lse": True}, {"window": (16, 0), "return_lse": True}], ids=str)
def test_mha_gets_the_tensors_as_they_lie(aiter: Given, layout: Any, options: dict[str, Any]) -> None:
    q, k, v = (layout(x) for x in qkv(64, 128))
    with Copies(q.numel()) as copies:
        call(q, k, v, **options)
    assert set(copies.made) <= {"aten.ones.default"}  # the stand-in's own
    first = 128 - 64 - 16 if "window" in options else 0
    for name, x in (("q", q), ("k", k[:, first:]), ("v", v[:, first:])):
        assert aiter.last[name].data_ptr() == x.data_ptr()
        assert aiter.last[name].stride() == x.stride()
        assert aiter.last[name].shape == x.shape


def test_every_call_runs_on_the_device_of_its_tensors(aiter: Given, monkeypatch: pytest.MonkeyPatch) -> None:
    """triton-launches-on-the-current-device"""
    entered = []

    class Current:
        def __init__(self, device: torch.device) -> None:
            self.device = device

        def __enter__(self) -> None:
            entered.append(self.device)

        def __exit__(self, *_: object) -> None:
            pass

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "device", Current)
    call(*qkv(8, 64), causal=True, softcap=5.0)
    call(*qkv(8, 64), return_lse=True)
    assert entered == [torch.device("cpu")] * 2
