"""Over the table of ops: what a remembered plan depends on and what not, told by how many plans a backend makes."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from ops.conftest import Mine
from ops.every_op import entries, every_op, every_op_with_gradients, every_sample, reference, samples
from sample import Sample, equal, flat, mapped
from torch import Tensor

import xattn
from xattn.dispatch import guard
from xattn.dispatch.op import Op
from xattn.ops.table import OPS

BF16, FP16 = torch.bfloat16, torch.float16


@pytest.fixture(params=["torch's guard", "python_guard"], autouse=True)
def _by(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """By torch's own guard, and by the one in its place where a torch has none."""
    if request.param == "python_guard":
        monkeypatch.setattr(guard, "TensorGuards", None)


@every_sample
def test_the_second_call_of_a_kind_makes_no_second_plan(op: Op, name: str, mine: Mine) -> None:
    kernel = mine(op)
    want = samples(op)[name].of(op.function, backend="reference")
    for _ in range(3):
        got = samples(op)[name].of(op.function)  # other tensors each time
        assert "dropout" in name or equal(got, want)
    assert kernel.plans == 1
    listed = {key: list(value) if isinstance(value, tuple) else value for key, value in samples(op)[name].named.items()}
    op.function(*samples(op)[name].tensors, **listed)
    assert kernel.plans == 1, "of a list that equals a tuple"
    for scope in (xattn.use_backend("mine"), xattn.use_backend(["other", "mine"])):
        with scope:
            before = kernel.plans
            for _ in range(3):
                samples(op)[name].of(op.function)
            assert kernel.plans == before + 1


@every_op
def test_calls_of_other_kinds_make_plans_of_their_own_and_keep_them(op: Op, mine: Mine) -> None:
    kernel = mine(op)
    every = samples(op)
    want = {name: sample.of(op.function, backend="reference") for name, sample in every.items()}
    for turn in range(3):
        for name, sample in every.items():
            got = sample.of(op.function)
            assert "dropout" in name or equal(got, want[name]), (turn, name)
    assert kernel.plans == len(every)


@every_op_with_gradients
def test_the_need_of_gradients_is_of_another_kind(op: Op, mine: Mine) -> None:
    kernel = mine(op)
    plain, trained = samples(op)["plain"], samples(op)["plain"].requiring_grad()
    modes: list[tuple[Sample, Callable[[], AbstractContextManager[Any]], bool]] = [
        (plain, nullcontext, False),
        (trained, nullcontext, True),
        (trained, torch.no_grad, False),
        (plain, torch.inference_mode, False),
    ]
    for turn in range(2):
        for i, (sample, mode, wanted) in enumerate(modes):
            before = kernel.plans
            with mode():
                outputs = [sample.of(op.function) for _ in range(2)]
            assert [first(out).requires_grad for out in outputs] == [wanted, wanted]
            # Without a gradient to be had, grad mode or not is one kind.
            assert kernel.plans - before <= (1 if turn == 0 else 0), (turn, i)
    assert kernel.plans >= 2


def first(answer: Any) -> Tensor:
    tensor: Tensor = answer if isinstance(answer, Tensor) else answer[0]
    return tensor


@every_op_with_gradients
def test_a_plan_made_in_inference_mode_trains(op: Op, mine: Mine) -> None:
    mine(op)
    trained = samples(op)["plain"].requiring_grad()
    with torch.inference_mode():
        trained.of(op.function)
    out = first(trained.of(op.function))
    leaf = trained.leaves[0]
    assert torch.autograd.grad(out.sum(), leaf)[0].shape == leaf.shape


@every_sample
def test_autocast_is_of_another_kind_and_off_inside(op: Op, name: str, mine: Mine) -> None:
    seen: list[bool] = []

    def watching(self: Any, request: xattn.Request) -> Callable[..., Any]:
        run = reference(op.name).plan(request)

        def watch(*tensors: Any, **given: Any) -> Any:
            seen.append(torch.is_autocast_enabled("cpu"))
            return run(*tensors, **given)

        return watch

    mine(op, plan=watching)
    sample = samples(op)[name]
    with torch.autocast("cpu", enabled=False):
        want = sample.of(op.function)
    dtypes: dict[torch.dtype, torch.dtype] = {}
    for dtype in (BF16, FP16, BF16, FP16):
        cast = sample.under_autocast(dtype)
        with torch.autocast("cpu", dtype=dtype):
            answers = [cast.of(op.function) for _ in range(2)]
            request = cast.of(entries(op)["explain"]).request
        assert first(answers[0]).dtype == first(answers[1]).dtype == dtypes.setdefault(dtype, first(answers[0]).dtype)
        assert "dropout" in name or equal(*answers)
        returns_nothing = op.writes and request.results(sample.tensors) is None
        written = getattr(request, "cache_dtype", None) if returns_nothing else None
        assert (written or getattr(request, "out_dtype", None) or request.dtype) == dtypes[dtype]
        assert "dropout" in name or equal(sample.of(op.function), want), "outside again"
    assert not any(seen)


@every_op
def test_one_tensor_in_two_places(op: Op, mine: Mine) -> None:
    """A remembered plan serves it, and other tensors of the same kind get their own answer.

    Two that the call writes to are refused: one would overwrite the other.
    """
    kernel = mine(op)
    plain = samples(op)["square" if "square" in samples(op) else "plain"]
    found = 0
    tensors = flat(plain.tensors)
    for i, x in enumerate(tensors):
        for y in tensors[:i]:
            if x is y or not alike(x, y):
                continue
            found += 1
            again, distinct = replaced(plain, x, y), replaced(plain, x, y.clone())
            if any(x is plain.tensors[place] for place in plain.written):
                with pytest.raises(xattn.InvalidArgumentError):
                    again.of(op.function)
                continue
            before = kernel.plans
            for _ in range(3):
                for sample in (again, distinct, plain):
                    assert equal(sample.of(op.function), sample.of(op.function, backend="reference"))
            assert kernel.plans - before <= 2
            before = kernel.plans
            again.of(op.function)
            assert kernel.plans == before
    # Those of a latent cache, or of an indexer's, have ranks of their own; of two that share one, one is longer by 1.
    assert found or op.name in ("mla_attention", "paged_mqa_logits")


def replaced(sample: Sample, one: Tensor, other: Tensor) -> Sample:
    """The sample with another tensor in the place of one."""
    tensors = [mapped(given, lambda x: other if x is one else x) for given in sample.tensors]
    return replace(sample, tensors=tuple(tensors))


def alike(x: Any, y: Any) -> bool:
    if not (isinstance(x, Tensor) and isinstance(y, Tensor)):
        return False
    return (x.shape, x.stride(), x.dtype) == (y.shape, y.stride(), y.dtype)


@every_op
def test_a_plan_made_under_a_default_device_serves_outside_it(op: Op, mine: Mine) -> None:
    mine(op)
    for name, sample in samples(op).items():
        want = sample.of(op.function, backend="reference")
        with torch.device("meta"):
            sample.of(op.function)
        assert "dropout" in name or equal(sample.of(op.function), want), name


def test_what_is_remembered_has_a_bound(mine: Mine) -> None:
    """Of 5,000 kinds of calls the plans of some 4,000 are alive, at the most."""

    class Run:
        def __call__(self, *tensors: Any, **given: Any) -> Any:
            return torch.empty(tensors[0].shape)

    alive: weakref.WeakSet[Run] = weakref.WeakSet()

    def plan(self: Any, request: xattn.Request) -> Run:
        run = Run()
        alive.add(run)
        return run

    mine(OPS["attention"], plan=plan)
    for seqlen in range(1, 5001):
        x = torch.empty(1, seqlen, 1, 1)
        xattn.attention(x, x, x)
        assert 0 < len(alive) <= 4200
