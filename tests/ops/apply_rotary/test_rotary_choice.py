"""Who rotates, and what a remembered call costs and serves."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from ops.apply_rotary.rotary_calls import tensors
from support import Load, backend_of, notes_of, plugin
from torch import Tensor

import xattn
from xattn.plugin import Plan

Given = tuple[Tensor, Tensor, Tensor, Tensor]


class Sevens(xattn.RotaryKernel):
    """Takes heads whose rotary dimension is 16, and answers with sevens."""

    capabilities = (
        xattn.Capabilities(
            device="cpu",
            dtypes=frozenset({torch.float32}),
            features=frozenset({"partial"}),
            sizes={"headdim": (16, 64, 16)},
            checked="never",
        ),
    )

    def limits(self, request: xattn.RotaryRequest) -> list[xattn.Reason]:
        return [] if request.rotary_dim == 16 else [xattn.Reason("rotary_dim", request.rotary_dim, "16", "Use 16.")]

    def plan(self, request: xattn.RotaryRequest) -> Plan:
        return lambda q, k, cos, sin: (torch.full_like(q, 7.0), k)


class Fails(Sevens):
    def plan(self, request: xattn.RotaryRequest) -> Plan:
        return lambda q, k, cos, sin: 1 / 0


def test_a_kernel_serves_what_it_declares(load: Load) -> None:
    load([plugin("acme", backend_of("sevens", Sevens()))])
    given = tensors()
    assert bool((xattn.apply_rotary(*given)[0] == 7).all())
    assert bool((xattn.apply_rotary(*tensors(headdim=32))[0] == 7).all())
    assert bool((xattn.apply_rotary(*given, backend=["reference", "sevens"])[0] != 7).all())
    narrow = tensors(rotary_dim=8)
    assert bool((xattn.apply_rotary(*narrow)[0] != 7).all())
    with pytest.raises(xattn.UnsupportedError, match=r"rotary_dim=8 \(supported: 16\)\. Use 16") as refusal:
        xattn.apply_rotary(*narrow, backend="sevens")
    assert isinstance(refusal.value.request, xattn.RotaryRequest)
    assert refusal.value.request.rotary_dim == 8


def test_everything_that_stops_a_kernel_is_said(load: Load) -> None:
    load([plugin("acme", backend_of("sevens", Sevens()))])
    q, k, cos, sin = tensors(torch.float16, seqlen=0, headdim=24, rotary_dim=8, batched=True)
    with pytest.raises(xattn.UnsupportedError) as refusal:
        xattn.apply_rotary(q.requires_grad_(), k, cos, sin, interleaved=True, backend="sevens")
    assert [str(reason) for reason in refusal.value.reasons["sevens"]] == [
        "dtype=float16 (supported: float32)",
        "headdim=24 (supported: 16 to 64, a multiple of 16)",
        "interleaved=True (supported: off)",
        "batched=True (supported: off). Where all batch rows have the same positions, pass cos[0] and sin[0].",
        "empty=a size of 0 (supported: off)",
        "grad_qk=required (supported: forward only). Call it under torch.no_grad().",
        "rotary_dim=8 (supported: 16). Use 16.",
    ]


def test_an_error_of_a_kernel_names_the_call(load: Load) -> None:
    load([plugin("acme", backend_of("fails", Fails()))])
    for _ in range(2):  # the first call, and a remembered one
        with pytest.raises(ZeroDivisionError) as error:
            xattn.apply_rotary(*tensors())
        (note,) = notes_of(error.value)
        assert "'fails' for apply_rotary: q=(2, 5, 4, 16), k=(2, 5, 2, 16), cos=(5, 8) float32, float32, cpu" in note


@pytest.mark.parametrize(
    "change",
    [
        lambda q, k, cos, sin: (q, k, cos[..., :4].contiguous(), sin[..., :4].contiguous()),
        lambda q, k, cos, sin: (q.half(), k.half(), cos, sin),
        lambda q, k, cos, sin: (q, k[:, :, :1], cos, sin),
        lambda q, k, cos, sin: (q, k, cos.expand(2, -1, -1), sin.expand(2, -1, -1)),
        lambda q, k, cos, sin: (q.transpose(1, 2).contiguous().transpose(1, 2), k, cos, sin),
    ],
)
def test_a_remembered_call_does_not_serve_another_kind(change: Callable[..., Given]) -> None:
    given = tensors()
    other = change(*given)
    want = xattn.apply_rotary(*other, backend=("reference",))
    for each in (given, other, given, other):
        got = xattn.apply_rotary(*each)
    assert all(torch.equal(x, y) for x, y in zip(got, want, strict=True))


def test_auto_costs_next_to_nothing(load: Load) -> None:
    class Constant(Sevens):
        def plan(self, request: xattn.RotaryRequest) -> Plan:
            return constant

    given = tensors()
    answer = given[:2]

    def constant(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> Any:
        return answer

    def best(function: Callable[[], Any]) -> float:
        times = []
        for _ in range(20):
            start = time.perf_counter()
            for _ in range(500):
                function()
            times.append(time.perf_counter() - start)
        return min(times) / 500

    load([plugin("acme", backend_of("constant", Constant()))])
    assert xattn.apply_rotary(*given) is answer
    assert best(lambda: xattn.apply_rotary(*given)) - best(lambda: constant(*given)) < 3e-6
