"""What the `aiter` backend passes to aiter for a call, and what it makes of the answer."""

from __future__ import annotations

import math
import sys
from typing import Any

import pytest
import torch
from rocm.aiter_recorder import Install, a_clean_process, a_vendor, call, qkv  # noqa: F401
from torch import Tensor
from xattn_elsewhere.aiter import standin

import xattn
from xattn import AttentionOutput


# Of the dense function: (causal, window). Sizes are 160 queries and 160 keys where nothing else is said.
@pytest.mark.parametrize(
    ("options", "sizes", "wanted"),
    [
        ({}, {}, (False, (-1, -1))),
        ({"causal": True}, {}, (True, (-1, -1))),
        ({"window": (None, None)}, {}, (False, (-1, -1))),
        # The last key of a window that reaches back to the first one.
        ({"window": (159, None)}, {}, (False, (-1, -1))),
        ({"window": (158, None)}, {}, (False, (158, -1))),
        ({"window": (None, 159)}, {}, (False, (-1, -1))),
        ({"window": (None, 158)}, {}, (False, (-1, 158))),
        ({"window": (16, 0)}, {}, (True, (16, 0))),
        ({"window": (16, 4), "causal": True}, {}, (True, (16, 0))),
        ({"window": (None, 0)}, {}, (True, (-1, -1))),
        # A side of 0 alone would go to ASM, which fails for it.
        ({"window": (0, 0)}, {}, (True, (0, 1))),
        ({"window": (0, None)}, {}, (False, (0, 159))),
        # A single query sees what is before it, and the rest of the keys is cut off.
        ({"causal": True}, {"seqlen_q": 1}, (False, (-1, -1))),
        ({"window": (16, 0)}, {"seqlen_q": 1}, (False, (-1, -1))),
        # More keys than the window reaches from any query.
        ({"window": (16, 0)}, {"seqlen_k": 400}, (True, (16, 0))),
        # A headdim_v of its own, for a group that decodes: any side keeps CK from its way to do that.
        ({}, {"seqlen_q": 1, "headdim": 64, "headdim_v": 32}, (False, (159, -1))),
    ],
)
def test_windows_are_written_as_aiter_serves_them(
    vendor: Install, options: dict[str, Any], sizes: dict[str, Any], wanted: tuple[bool, tuple[int, int]]
) -> None:
    made = vendor()
    call(*qkv(**sizes), **options)
    assert made.given[5:7] == wanted


@pytest.mark.parametrize(
    ("options", "sizes", "wanted"),
    [
        ({}, {}, (False, (159, -1))),
        ({"causal": True}, {}, (True, (159, 0))),
        ({"window": (16, 0)}, {}, (True, (16, 0))),
        ({"window": (0, 0)}, {}, (True, (0, 1))),
        ({"window": (None, 3)}, {}, (False, (-1, 3))),
        # CK is aiter's choice already.
        ({"causal": True}, {"headdim": 64}, (True, (-1, -1))),
        ({"causal": True}, {"seqlen_q": 128, "seqlen_k": 128}, (True, (-1, -1))),
        # But not its way to decode a group.
        ({}, {"seqlen_q": 1, "headdim": 64}, (False, (159, -1))),
        ({}, {"seqlen_q": 1, "seqlen_k": 1, "headdim": 64}, (False, (0, -1))),
    ],
)
def test_sinks_come_with_a_window_that_keeps_them_on_ck(
    vendor: Install, options: dict[str, Any], sizes: dict[str, Any], wanted: tuple[bool, tuple[int, int]]
) -> None:
    made, sinks = vendor(), torch.zeros(4)
    call(*qkv(**sizes), sinks=sinks, **options)
    assert made.given[5:7] == wanted
    assert made.named == {"sink_ptr": sinks}


def test_no_sinks_no_argument_for_them(vendor: Install) -> None:
    made = vendor(version="0.1.7.post2.dev18")
    call(*qkv())
    assert made.named == {}


@pytest.mark.parametrize("scale", [None, 0.25, 1.0])
def test_the_scale_is_always_passed(vendor: Install, scale: float | None) -> None:
    made = vendor()
    call(*qkv(headdim=64), scale=scale)
    assert made.given[4] == (0.125 if scale is None else scale)


@pytest.mark.parametrize("deterministic", [False, True])
def test_deterministic_is_passed_on(vendor: Install, deterministic: bool) -> None:
    made = vendor()
    call(*qkv(), deterministic=deterministic)
    assert made.given[9] is deterministic


def test_training_asks_for_lse_and_returns_out_alone(vendor: Install) -> None:
    """return-lse-assert, lse-docstring"""
    made, (q, k, v) = vendor(), qkv()
    out = call(q.requires_grad_(), k, v)
    assert made.given[10] is True
    assert isinstance(out, Tensor)


def test_training_keeps_dead_queries_from_aiter(vendor: Install) -> None:
    made, (q, k, v) = vendor(), qkv(seqlen_q=200)
    out = call(q.requires_grad_(), k, v, causal=True)
    assert made.given[0].shape[1] == 160
    assert out.shape[1] == 200
    assert bool((out[:, :40] == 0).all())
    assert bool((out[:, 40:] == 1).all())


@pytest.mark.parametrize("sinks", [None, torch.tensor([1.0, 2.0, 3.0, 4.0])])
def test_dead_queries_are_written_over(vendor: Install, sinks: Tensor | None) -> None:
    made, (q, k, v) = vendor(), qkv(seqlen_q=200)
    out, lse = call(q, k, v, causal=True, return_lse=True, sinks=sinks)
    assert made.given[0].data_ptr() == q.data_ptr()
    assert bool((out[:, :40] == 0).all())
    assert bool((out[:, 40:] == 1).all())
    wanted = torch.full((4,), -math.inf) if sinks is None else sinks
    assert torch.equal(lse[:, :, :40], wanted[None, :, None].expand(2, 4, 40))
    assert bool((lse[:, :, 40:] == 1).all())


def test_dead_queries_of_capped_calls_are_written_over(vendor: Install) -> None:
    vendor()
    out, lse = call(*qkv(seqlen_q=200), causal=True, return_lse=True, softcap=2.0)
    assert bool((out[:, :40] == 0).all())
    assert bool((lse[:, :, :40] == -math.inf).all())
    assert bool((out[:, 40:] == 1).all())
    assert bool((lse[:, :, 40:] == 1).all())


def test_the_softcap_goes_through_the_varlen_function(vendor: Install) -> None:
    made, (q, k, v) = vendor(), qkv(headdim=64)
    out, lse = call(q, k, v, softcap=30.0, causal=True, return_lse=True)
    assert [x.shape for x in made.given[:3]] == [(320, 4, 64), (320, 2, 64), (320, 2, 64)]
    assert made.given[3].tolist() == made.given[4].tolist() == [0, 160, 320]
    assert made.given[3].dtype == torch.int32
    assert made.given[5:] == (160, 160, 0, 0.0, 0.125, 30.0, True, (-1, -1), None, None, False, True)
    assert out.shape == (2, 160, 4, 64)
    assert out.is_contiguous()
    assert lse.shape == (2, 4, 160)


def test_starts_of_sequences_are_made_once(vendor: Install) -> None:
    made, (q, k, v) = vendor(), qkv(headdim=64)
    call(q, k, v, softcap=30.0)
    first = made.given[3]
    call(q, k, v, softcap=30.0)
    assert made.given[3] is first


def test_starts_made_in_a_graph_stay_in_it(vendor: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    made, (q, k, v) = vendor(), qkv(headdim=64)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    call(q, k, v, softcap=30.0)
    first = made.given[3]
    call(q, k, v, softcap=30.0)
    assert made.given[3] is not first


def test_a_padded_head_comes_back_contiguous(vendor: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    vendor()
    wide = torch.ones(2, 160, 4, 16, dtype=torch.bfloat16)
    module = sys.modules["aiter"]
    monkeypatch.setattr(module, "flash_attn_func", lambda *given: wide[..., :13])
    assert call(*qkv(headdim=13)).is_contiguous()


def test_slopes_with_gaps_are_made_dense(vendor: Install) -> None:
    made = vendor()
    slopes = torch.ones(4, 2)[:, 0]
    call(*qkv(), alibi_slopes=slopes)
    assert made.given[8].stride() == (1,)


@pytest.mark.parametrize("return_lse", [False, True])
def test_causal_slopes_come_with_a_left_side(vendor: Install, return_lse: bool) -> None:
    made = vendor()
    call(*qkv(), alibi_slopes=torch.ones(4), causal=True, return_lse=return_lse)
    assert made.given[5:7] == (True, (159, 0))


@pytest.mark.parametrize("shape", [(160, 160), (1, 160, 160), (1, 1, 160, 160)])
def test_a_bias_becomes_a_matrix_beside_a_mask(vendor: Install, shape: tuple[int, ...]) -> None:
    made, bias = vendor(), torch.zeros(shape, dtype=torch.bfloat16)
    call(*qkv(), bias=bias)
    assert made.given[7].shape == (160, 160)
    assert made.given[7].data_ptr() == bias.data_ptr()
    assert made.given[6] == (159, -1)


def test_a_bias_is_cut_with_the_keys(vendor: Install) -> None:
    made = vendor()
    bias = torch.arange(300.0).expand(160, 300).bfloat16()
    call(*qkv(seqlen_k=300), bias=bias, window=(16, 0))
    assert torch.equal(made.given[7], bias[:, 124:])


def test_a_transposed_bias_is_made_dense(vendor: Install) -> None:
    made = vendor()
    bias = torch.arange(160.0 * 160).view(160, 160).bfloat16().T
    call(*qkv(), bias=bias)
    assert made.given[7].stride() == (160, 1)
    assert torch.equal(made.given[7], bias)


@pytest.mark.parametrize("arch", standin.ARCHS)
def test_minus_infinity_in_a_bias_masks_keys_and_queries(arch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "aiter", None)
    standin.install(arch)
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 33, 2, 64, generator=generator).half() for _ in range(3))
    bias = torch.zeros(33, 33, dtype=torch.float16)
    bias[:, 5] = bias[7] = -math.inf
    k[:, 5], v[:, 5] = math.nan, math.inf
    out, lse = call(q, k, v, bias=bias, return_lse=True)
    seen = [key for key in range(33) if key != 5]
    wanted = xattn.attention(q.double(), k[:, seen].double(), v[:, seen].double(), return_lse=True, backend="reference")
    live = [row for row in range(33) if row != 7]
    torch.testing.assert_close(out[:, live].double(), wanted.out[:, live], rtol=0, atol=2e-3)
    torch.testing.assert_close(lse[:, :, live].double(), wanted.lse[:, :, live].double(), rtol=0, atol=1e-4)
    assert bool((out[:, 7] == 0).all())
    assert bool((lse[:, :, 7] == -math.inf).all())


@pytest.mark.parametrize(
    ("error", "options"),
    [
        # invalid-argument-when-prebuilt
        (RuntimeError("invalid argument for fmha_fwd"), {}),
        # varlen-needs-flydsl
        (ModuleNotFoundError("No module named 'flydsl'"), {"softcap": 2.0}),
    ],
)
def test_aiters_own_errors_come_through(
    vendor: Install, monkeypatch: pytest.MonkeyPatch, error: Exception, options: dict[str, Any]
) -> None:
    vendor()

    def fail(*given: Any) -> None:
        raise error

    monkeypatch.setattr(sys.modules["aiter"], "flash_attn_varlen_func" if options else "flash_attn_func", fail)
    with pytest.raises(type(error), match=str(error)) as caught:
        call(*qkv(), **options)
    assert caught.value is error


@pytest.mark.parametrize("options", [{"causal": True}, {"softcap": 2.0}, {"window": (16, 0), "return_lse": True}])
def test_under_torch_compile_the_call_is_one_graph(vendor: Install, options: dict[str, Any]) -> None:
    vendor()
    compiled = torch.compile(lambda q, k, v: call(q, k, v, **options), fullgraph=True, backend="eager")
    returned = compiled(*qkv())
    assert bool(((returned.out if options.get("return_lse") else returned) == 1).all())


def test_results_are_what_was_asked_for(vendor: Install) -> None:
    vendor()
    assert isinstance(call(*qkv()), Tensor)
    assert isinstance(call(*qkv(), return_lse=True), AttentionOutput)


@pytest.mark.parametrize(
    ("arch", "first"), [("gfx942", "aiter"), ("gfx950", "aiter"), ("gfx1201", "sdpa"), ("gfx90a", "sdpa")]
)
def test_auto_takes_aiter_where_its_kernels_are_known_to_build(vendor: Install, arch: str, first: str) -> None:
    vendor(arch=arch)
    ordered = [candidate.name for candidate in xattn.explain(*qkv(), backend="aiter").candidates]
    assert next(name for name in ordered if name in ("aiter", "sdpa")) == first
    call(*qkv())
