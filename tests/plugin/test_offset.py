"""`xattn.plugin.offset`: an int `align` by way of bottom-right calls, against the contract's formula."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from support import visible_pairs
from torch import Tensor
from torch._dynamo.testing import CompileCounter

from xattn import Reason
from xattn.plugin import Plan
from xattn.plugin.geometry import Geometry
from xattn.plugin.offset import as_bottom_right, offset_reasons, plan_at_offset


@dataclass(frozen=True)
class OffsetRequest:
    """What the helpers ask of a request."""

    seqlen_q: int = 3
    seqlen_k: int = 8
    left: int | None = None
    right: int | None = 0
    align: str = "offset"
    offset_inside: bool = True
    bias: object = None
    mask: object = None
    seqlens_k: object = None

    @property
    def band(self) -> tuple[int | None, int | None]:
        return self.left, self.right


def test_which_offsets_are_bottom_right_calls_of_fewer_keys() -> None:
    """Those without a Reason."""
    for seqlen_q, seqlen_k, offset in itertools.product(range(2, 6), range(1, 8), range(-7, 12)):
        for left, right in itertools.product((None, 0, 1, 2), (None, 0, 1, 2)):
            call = OffsetRequest(seqlen_q, seqlen_k, left, right, offset_inside=0 <= offset <= seqlen_k - seqlen_q)
            if offset_reasons(call):
                continue
            fewer = as_bottom_right(call, offset + seqlen_q)
            assert fewer.align == "bottom_right"
            at_offset = Geometry(seqlen_q, seqlen_k, left, right, offset)
            bottom_right = Geometry(seqlen_q, fewer.seqlen_k, left, right, fewer.seqlen_k - seqlen_q)
            assert visible_pairs(bottom_right) == visible_pairs(at_offset), call


@pytest.mark.parametrize(
    ("change", "got"),
    [
        ({"right": None}, "an int without causal"),
        ({"right": 2}, "an int without causal"),
        ({"offset_inside": False}, "an int out of range"),
        ({"bias": "a bias"}, "an int beside bias"),
        ({"mask": "a mask"}, "an int beside mask"),
        ({"seqlens_k": "lengths", "offset_inside": False}, "an int beside seqlens_k"),
    ],
)
def test_reasons(change: dict[str, Any], got: str) -> None:
    (reason,) = offset_reasons(replace(OffsetRequest(left=2), **change))
    assert isinstance(reason, Reason)
    assert (reason.code, reason.got) == ("align", got)
    assert offset_reasons(OffsetRequest(left=2)) == []


def test_one_plan_serves_every_offset() -> None:
    made = []

    def plan(request: OffsetRequest) -> Plan:
        assert request.align == "bottom_right"
        made.append(request.seqlen_k)

        def run(q: Tensor, k: Tensor, v: Tensor, **tensors: Tensor) -> Tensor:
            assert k.shape[1] == v.shape[1] == request.seqlen_k
            return (k[:, -1] + v[:, -1] + tensors["sinks"])[:, None].expand_as(q)

        return run

    run = plan_at_offset(OffsetRequest(), plan)
    q, k = torch.zeros(1, 3, 1, 1), torch.arange(8.0).view(1, 8, 1, 1)
    for offset in (0, 2, 5, 2):
        # Keys that are not seen, and may hold NaN, do not reach the plan.
        cache = k.clone()
        cache[:, offset + 3 :] = torch.nan
        out = run(q, cache, cache, align=offset, sinks=torch.ones(()))
        assert (out == 2 * (offset + 2) + 1).all()
    assert made == [3, 5, 8]


@pytest.mark.parametrize("offset", [-1, 6, 8])
def test_a_held_plan_refuses_an_offset_out_of_range(offset: int) -> None:
    run = plan_at_offset(OffsetRequest(), lambda request: lambda q, k, v: q)
    q, k = torch.zeros(1, 3, 1, 1), torch.zeros(1, 8, 1, 1)
    with pytest.raises(ValueError, match=f"align: got {offset}, want 0 to 5"):
        run(q, k, k, align=offset)


def test_compiled() -> None:
    """The int stays symbolic: one graph for a chunk that moves."""

    def plan(request: OffsetRequest) -> Plan:
        return lambda q, k, v: q + k.sum(1, keepdim=True) * request.seqlen_k + v.sum(1, keepdim=True)

    run = plan_at_offset(OffsetRequest(), plan)

    def step(q: Tensor, k: Tensor, offset: int) -> Any:
        return run(q, k, k, align=offset)

    graphs = CompileCounter()
    compiled = torch.compile(step, backend=graphs, dynamic=True, fullgraph=True)
    q, k = torch.randn(1, 3, 1, 2), torch.randn(1, 8, 1, 2)
    for offset in (2, 3, 4):
        torch.testing.assert_close(compiled(q, k, offset), step(q, k, offset))
    assert graphs.frame_count == 1
