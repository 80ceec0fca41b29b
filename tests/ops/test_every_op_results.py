"""Over the table of ops: a plan's first result is looked at before the caller sees it."""

from __future__ import annotations

import copy
import importlib
import inspect
import math
import pickle
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from ops.conftest import Mine
from ops.every_op import Counting, entries, every_op, every_op_with_gradients, every_sample, reference, samples
from sample import Sample, equal, flat
from torch import Tensor

import xattn
from xattn.dispatch.op import Op
from xattn.ops.table import OPS
from xattn.plugin import Plan
from xattn.testing import fresh


def each(change: Callable[[Tensor], Any]) -> Callable[[Any], Any]:
    """The same structure with every tensor changed."""

    def changed(answer: Any) -> Any:
        if isinstance(answer, Tensor):
            return change(answer)
        if answer is None:
            return None
        parts = [changed(part) for part in answer]
        return type(answer)._make(parts) if hasattr(answer, "_make") else type(answer)(parts)

    return changed


def only(place: int, change: Callable[[Tensor], Any]) -> Callable[[Any], Any]:
    """The same structure with one of its tensors changed."""

    def changed(answer: Any) -> Any:
        chosen = flat(answer)[place]
        return each(lambda x: change(x) if x is chosen else x)(answer)

    return changed


def last(change: Callable[[Tensor], Any]) -> Callable[[Any], Any]:
    """The same structure with the last of its tensors changed."""
    return only(-1, change)


WRONG: dict[str, Callable[[Any], Any]] = {
    "None": lambda answer: None,
    "a list": lambda answer: flat(answer),
    "a tuple more": lambda answer: (answer, answer),
    "an array": last(lambda x: x.detach().numpy()),
    "wide": last(lambda x: x.to(torch.float64 if x.dtype != torch.float64 else torch.float32)),
    "whole numbers": each(lambda x: x.to(torch.int64)),
    "another size": last(lambda x: torch.cat((x, x)) if x.shape[0] else x.new_zeros(1, *x.shape[1:])),
    "another rank": last(lambda x: x.unsqueeze(0)),
    "another device": each(lambda x: x.to("meta")),
}  # fmt: skip


def returning(change: Callable[[Any], Any]) -> Callable[..., Plan]:
    """A `plan` that computes what `reference` does, and returns something else."""

    def plan(self: Counting, request: xattn.Request) -> Plan:
        run = reference(self.op).plan(request)

        def wrong(*tensors: Any, **given: Any) -> Any:
            answer = run(*tensors, **given)
            return change(tensors[0] if answer is None else answer)  # of an op that returns nothing, something

        return wrong

    return plan


def is_wrong(op: Op, wrong: str) -> bool:
    """Whether it is another result than that of the op, which may return None itself."""
    return wrong != "None" or "None" not in str(inspect.signature(op.function).return_annotation)


@pytest.mark.parametrize(
    ("op", "name", "wrong"),
    [
        pytest.param(op, name, wrong, id=f"{wrong}-{op.name}-{name}")
        for wrong in WRONG
        for op in OPS.values()
        if is_wrong(op, wrong)
        for name in samples(op)
    ],
)
def test_a_wrong_result_reaches_nobody(op: Op, name: str, wrong: str, mine: Mine) -> None:
    mine(op, plan=returning(WRONG[wrong]))
    sample = samples(op)[name]
    for _ in range(2):  # and its plan is not remembered
        with pytest.raises(xattn.BrokenBackendError, match=r"xattn's backend 'mine' returned .*, want .*") as caught:
            sample.of(op.function)
    error = caught.value
    assert isinstance(error, xattn.XattnError)
    assert error.backend == "mine"
    assert str(error.request) in str(error)
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert (type(again), str(again)) == (type(error), str(error))


@pytest.mark.parametrize(
    ("op", "wrong"),
    [pytest.param(op, wrong, id=f"{wrong}-{op.name}") for wrong in WRONG for op in OPS.values() if is_wrong(op, wrong)],
)
def test_a_wrong_result_of_a_held_plan(op: Op, wrong: str, mine: Mine) -> None:
    mine(op, plan=returning(WRONG[wrong]))
    sample = samples(op)["plain"]
    run = sample.of(entries(op)["plan"])
    with pytest.raises(xattn.BrokenBackendError, match="'mine'"):
        call_held(run, op, sample)


def apart(x: Tensor) -> Tensor:
    """The same values, not contiguous."""
    return x.new_empty(*x.shape, 2)[..., 0].copy_(x)


@every_sample
def test_a_result_that_is_not_contiguous(op: Op, name: str, mine: Mine) -> None:
    """The contract lets an lse have any strides, and nothing else that a call returns for `results` says so."""
    sample = samples(op)[name]
    prepared = op.prepare(*sample.tensors, **sample.named)
    want = prepared.request.results(prepared.tensors)
    specs = [spec for spec in (want if isinstance(want, tuple) else (want,)) if spec is not None]
    for i, spec in enumerate(specs):
        mine(op, plan=returning(only(i, apart)))
        with fresh():
            if spec.contiguous and math.prod(spec.shape) > 1:
                with pytest.raises(
                    xattn.BrokenBackendError, match=r"'mine' returned a tensor of strides .* contiguous"
                ):
                    sample.of(op.function)
            else:
                sample.of(op.function)


@every_op_with_gradients
def test_a_result_without_the_gradient_that_was_asked_for(op: Op, mine: Mine) -> None:
    """Each result alone; where no gradient can be asked of it, it may be as it is."""
    for place in samples(op)["plain"].differentiable:
        sample = replace(samples(op)["plain"], differentiable=(place,)).requiring_grad()
        right = flat(sample.of(op.function, backend="reference"))
        prepared = op.prepare(*sample.tensors, **sample.named)
        want = prepared.request.results(prepared.tensors)
        specs = [spec for spec in (want if isinstance(want, tuple) else (want,)) if spec is not None]
        for i, (spec, answer) in enumerate(zip(specs, right, strict=True)):
            assert answer.requires_grad or not spec.requires_grad
            mine(op, plan=returning(only(i, Tensor.detach)))
            with fresh():
                if spec.requires_grad:
                    with pytest.raises(xattn.BrokenBackendError, match="'mine' returned a tensor without a gradient"):
                        sample.of(op.function)
                else:
                    sample.of(op.function)
                with torch.no_grad():
                    sample.of(op.function)


@every_op
def test_a_plan_that_cannot_be_called(op: Op, mine: Mine) -> None:
    mine(op, plan=lambda self, request: None)
    sample = samples(op)["plain"]
    for function in (op.function, entries(op)["plan"]):
        with pytest.raises(xattn.BrokenBackendError, match="'mine' returned NoneType as its plan, want a callable"):
            sample.of(function)


def call_held(run: Any, op: Op, sample: Sample) -> Any:
    prepared = op.prepare(*sample.tensors, **sample.named)
    return replace(sample, tensors=prepared.tensors, named=dict(prepared.given)).of(run)


@every_sample
def test_results_are_what_reference_returns(op: Op, name: str) -> None:
    """`Request.results` against the oracle, in every dtype, under autocast too."""
    sample = samples(op)[name]
    for dtype in (None, torch.bfloat16):
        called = sample if dtype is None else sample.under_autocast(dtype)
        with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
            prepared = op.prepare(*called.tensors, **called.named)
            answer = op.function(*called.tensors, **called.named, backend="reference")
        want = prepared.request.results(prepared.tensors)
        specs = [spec for spec in (want if isinstance(want, tuple) else (want,)) if spec is not None]
        assert [(tuple(x.shape), x.dtype) for x in flat(answer)] == [(spec.shape, spec.dtype) for spec in specs]


@every_op
def test_only_the_first_result_is_looked_at(op: Op, mine: Mine, monkeypatch: pytest.MonkeyPatch) -> None:
    plans: Any = importlib.import_module("xattn.dispatch.plans")
    looked: list[None] = []
    check = plans.check_results
    monkeypatch.setattr(plans, "check_results", lambda *arguments: looked.append(check(*arguments)))
    mine(op)
    sample = samples(op)["plain"]
    first = sample.of(op.function)
    assert len(looked) == 1
    assert equal(first, sample.of(op.function))
    assert len(looked) == 1
    run = sample.of(entries(op)["plan"])
    for _ in range(3):
        call_held(run, op, sample)
    assert len(looked) == 2
