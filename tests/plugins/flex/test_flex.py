"""`flex` without a compiler, by torch's flex_attention over the whole score matrix: what is asked of torch is right."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from support import extended
from torch import Tensor
from torch.nn.attention import flex_attention
from torch.nn.attention.flex_attention import create_mask
from xattn_flex.attention import blocks, compiled, mods

import xattn
from xattn.plugin.devices import emulated
from xattn.testing import fresh

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")

SLOPES = torch.tensor([0.5, 0.25, 0.125, 0.0625])


@pytest.fixture(autouse=True)
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(compiled, "function", compiled.uncompiled)
    monkeypatch.setattr(compiled, "built", set())
    monkeypatch.setitem(emulated, "cpu", ("cuda", "sm_90"))
    # torch refuses gradients on the CPU, which its way over the whole score matrix has.
    monkeypatch.setattr(flex_attention, "_validate_device", lambda *qkv: None, raising=False)
    with fresh():
        yield


def qkv(seqlen_q: int, seqlen_k: int, headdim: int = 16, headdim_v: int | None = None) -> tuple[Tensor, ...]:
    draw = torch.Generator().manual_seed(0)
    shapes = ((2, seqlen_q, 4, headdim), (2, seqlen_k, 2, headdim), (2, seqlen_k, 2, headdim_v or headdim))
    return tuple(torch.randn(shape, generator=draw) for shape in shapes)


def masks(seqlen_q: int, seqlen_k: int) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(1)
    mask = torch.rand(2, 4, seqlen_q, seqlen_k, generator=draw) < 0.5
    mask[..., 3] = False
    mask[0, :, 1] = False
    bias = torch.randn(4, seqlen_q, seqlen_k, generator=draw)
    bias[..., 5] = -math.inf
    return {"mask": mask, "bias": bias, "row": mask[:1, :1, :1]}


def both(*tensors: Tensor, **options: Any) -> list[Any]:
    return [xattn.attention(*tensors, return_lse=True, backend=name, **options) for name in ("flex", "reference")]


OPTIONS: list[dict[str, Any]] = [
    {},
    {"causal": True, "softcap": 2.0},
    {"window": (7, 2)},
    {"causal": True, "align": "top_left"},
    {"causal": True, "align": 5},
    {"window": (3, 1), "align": 300},
    {"causal": True, "alibi_slopes": SLOPES, "sinks": SLOPES},
    {"alibi_slopes": SLOPES.expand(2, 4), "align": -3},
    {"scale": -0.3, "causal": True},
    {"causal": True, "seqlens_k": torch.tensor([33, 9])},
    {"window": (4, 1), "seqlens_k": torch.tensor([0, 20]), "alibi_slopes": SLOPES},
    {"causal": True, "align": "top_left", "seqlens_k": torch.tensor([7, 33])},
]


@pytest.mark.parametrize("sizes", [(9, 33), *extended((33, 9), (150, 260))], ids=str)
@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "+".join(options) or "plain")
def test_calls_are_right(sizes: tuple[int, int], options: dict[str, Any]) -> None:
    if "seqlens_k" in options:
        options = {**options, "seqlens_k": options["seqlens_k"].clamp_max(sizes[1])}
    for got, want in zip(*both(*qkv(*sizes), **options), strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("options", [{"causal": True}, {"window": (40, 7), "softcap": 2.0, "align": 90}], ids="+".join)
def test_blocks_are_left_out_of_calls(options: dict[str, Any]) -> None:
    torch.testing.assert_close(*both(*qkv(150, 260), **options))


@pytest.mark.parametrize("given", [("mask", "bias"), *extended(("mask",), ("bias",), ("row",))], ids=str)
@pytest.mark.parametrize("causal", [True, *extended(False)])
def test_masks_and_biases(given: tuple[str, ...], causal: bool) -> None:
    """Keys that are hidden from all hold NaN."""
    q, k, v = qkv(9, 33)
    named = {("mask" if name == "row" else name): masks(9, 33)[name] for name in given}
    lse = "bias" not in given
    expected = xattn.attention(q, k, v, causal=causal, return_lse=lse, backend="reference", **named)  # type: ignore[call-overload]
    hidden = 3 if "bias" not in given else 5
    if "row" not in given:
        k[:, hidden], v[:, hidden] = math.nan, math.nan
    found = xattn.attention(q, k, v, causal=causal, return_lse=lse, backend="flex", **named)  # type: ignore[call-overload]
    torch.testing.assert_close(found, expected)


def test_what_is_behind_a_length_reaches_nothing() -> None:
    q, k, v = qkv(3, 20)
    lengths = torch.tensor([9, 14])
    options: dict[str, Any] = {"window": (4, 0), "seqlens_k": lengths}
    (expected, _) = both(q, k, v, **options)
    for b, length in enumerate(lengths.tolist()):
        for x in (k, v):
            x[b, length:], x[b, : length - 7] = math.nan, math.nan
    (found, _) = both(q, k, v, **options)
    for got, want in zip(found, expected, strict=True):
        assert torch.equal(got, want)


@pytest.mark.parametrize(
    "options",
    [{"causal": True, "softcap": 2.0}, {"window": (5, 1), "sinks": SLOPES}, {"alibi_slopes": SLOPES}],
    ids=str,
)
@pytest.mark.parametrize("sizes", [*extended((9, 17)), (17, 9)], ids=str)
def test_gradients_are_right(sizes: tuple[int, int], options: dict[str, Any]) -> None:
    grads = []
    for name in ("flex", "reference"):
        given = [x.requires_grad_() for x in qkv(*sizes)]
        named = {**options}
        if "sinks" in options:
            named["sinks"] = SLOPES.clone().requires_grad_()
            given.append(named["sinks"])
        out, lse = xattn.attention(*given[:3], return_lse=True, backend=name, **named)
        ((out * out).sum() + lse.masked_fill(lse == -math.inf, 0).sum()).backward()
        grads.append([x.grad for x in given])
    torch.testing.assert_close(*grads)


def test_a_graph_may_be_gone_through_again() -> None:
    """Which torch refuses of what it compiled."""
    q, k, v = (x.requires_grad_() for x in qkv(9, 17))
    out, lse = xattn.attention(q, k, v, softcap=2.0, return_lse=True, backend="flex")
    first = torch.autograd.grad(out.sum(), (q, k, v), retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(out.sum(), (q, k, v), retain_graph=True), first)
    (dq,) = torch.autograd.grad(lse.sum(), q)
    assert dq.abs().max() > 0


def test_the_environment_is_left_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XATTN_TEST", raising=False)
    with compiled.same_environment():
        os.environ["XATTN_TEST"] = "1"
    assert "XATTN_TEST" not in os.environ


def test_a_second_derivative_raises() -> None:
    q, k, v = (x.requires_grad_() for x in qkv(3, 5))
    (dq,) = torch.autograd.grad(xattn.attention(q, k, v, backend="flex").sum(), q, create_graph=True)
    with pytest.raises(NotImplementedError, match="second derivative"):
        dq.sum().backward()


@pytest.mark.parametrize("sizes", [(300, 200), *extended((128, 128), (130, 700))], ids=str)
@pytest.mark.parametrize("band", [(-blocks.OPEN, 0), (-40, 17), (-200, 130), (250, 260), (-blocks.OPEN, blocks.OPEN)])
def test_blocks_of_a_band(sizes: tuple[int, int], band: tuple[int, int]) -> None:
    """A block is left out where it hides every score, and not looked into where it hides none."""
    seen = create_mask(mods.mask_mod(torch.tensor(band)), None, None, *sizes, device="cpu")[0, 0]
    found = blocks.of_band(*sizes, *band, torch.device("cpu"), None)
    for row in range(-(-sizes[0] // 128)):
        part = seen[row * 128 : row * 128 + 128]
        for what, count, indices in (
            ("partial", found.kv_num_blocks, found.kv_indices),
            ("full", found.full_kv_num_blocks, found.full_kv_indices),
        ):
            listed = set(indices[0, 0, row, : int(count[0, 0, row])].tolist())
            for column in range(-(-sizes[1] // 128)):
                block = part[:, column * 128 : column * 128 + 128]
                whole = block.shape == (128, 128) and bool(block.all())
                assert (column in listed) == (whole if what == "full" else bool(block.any()) and not whole)


def test_auto_waits_until_a_kernel_is_there() -> None:
    q, k, v = qkv(130, 130)
    options: dict[str, Any] = {"causal": True, "softcap": 3.0}
    cold = xattn.explain(q, k, v, **options)
    assert cold.backend == "sdpa"
    assert "has to be built first: 2 to 8 s of torch.compile" in str(cold)
    xattn.attention(q, k, v, backend="flex", **options)
    assert xattn.explain(q, k, v, **options).backend == "flex"
    assert xattn.explain(*qkv(200, 200), causal=True, softcap=4.0).backend == "flex"  # of all lengths and caps
    assert xattn.explain(*qkv(200, 260), **options).backend == "sdpa"  # but not of more keys than queries
    xattn.attention(q, k, v, backend="flex")
    assert xattn.explain(q, k, v).backend == "sdpa"  # which is the faster one


def test_a_graph_of_torch_compile_takes_another_backend() -> None:
    q, k, v = qkv(9, 17)
    found = torch.compile(lambda *qkv: xattn.attention(*qkv, causal=True), fullgraph=True, backend="eager")(q, k, v)
    torch.testing.assert_close(found, xattn.attention(q, k, v, causal=True, backend="reference"))


def test_each_kind_has_a_code_object_of_its_own() -> None:
    """torch.compile counts what it made of one."""
    assert compiled.own().__code__ is not compiled.own().__code__
