"""Arguments of attention: what equals a legal value is legal, and what a held plan takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from ops.attention.illegal import LEGAL, K, Q, V, ones

import xattn
from xattn.testing import fresh


def call(entry: Callable[..., Any], wrong: dict[str, Any]) -> Any:
    arguments = {"q": Q, "k": K, "v": V, "backend": "reference", **wrong}
    return entry(arguments.pop("q"), arguments.pop("k"), arguments.pop("v"), **arguments)


def test_a_plan_takes_the_tensors_it_was_made_with() -> None:
    run = xattn.plan(Q, K, V, sinks=LEGAL["sinks"], seqlens_k=LEGAL["seqlens_k"], backend="reference")
    for given in ({}, {"sinks": ones(4)}, {"sinks": ones(4), "seqlens_k": LEGAL["seqlens_k"], "bias": ones(5, 6)}):
        with pytest.raises(TypeError, match=r"this plan takes \['seqlens_k', 'sinks'\] by name, got"):
            run(Q, K, V, **given)
    with pytest.raises(xattn.InvalidArgumentError, match="seqlens_k: got values from 7 to 7"):
        run(Q, K, V, sinks=ones(4), seqlens_k=torch.tensor([7, 7]))
    assert run(Q, K, V, sinks=ones(4), seqlens_k=LEGAL["seqlens_k"]).shape == Q.shape


def test_other_tensors_than_a_plan_was_made_for_are_no_fault_of_the_backend() -> None:
    run = xattn.plan(Q, K, V, backend="sdpa")
    more = torch.cat((Q, Q), 1)
    with pytest.raises(xattn.InvalidArgumentError, match=r"tensors: got attention: .*, want those of the plan, "):
        run(more, K, V)
    assert torch.equal(run(Q, K, V), xattn.attention(Q, K, V, backend="sdpa"))


@pytest.mark.parametrize(
    ("name", "value", "same"),
    [
        ("causal", 1, True),
        ("causal", 0.0, False),
        ("return_lse", 0, False),
        ("window", (True, 0), (1, 0)),
        ("window", [1.0, None], (1, None)),
        ("scale", True, 1.0),
        ("scale", 2, 2.0),
        ("softcap", 3, 3.0),
        ("dropout_p", False, 0.0),
    ],
)
def test_what_equals_a_legal_value_is_legal(name: str, value: Any, same: Any) -> None:
    for first, second in ((value, same), (same, value)):
        with fresh():
            one, two = (call(xattn.attention, {name: each}) for each in (first, second))
        assert torch.equal(one, two)
    request = xattn.explain(Q, K, V, **{name: value}).request
    assert repr(getattr(request, name)) == repr(getattr(xattn.explain(Q, K, V, **{name: same}).request, name))
