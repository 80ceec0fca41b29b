"""Over the table of ops: torch.compile, in one graph and for any length, and fake tensors. On `reference` and a backend
of the tests: what vendors' kernels do in a graph is for their own tests."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from ops.conftest import Mine
from ops.every_op import entries, every_sample, for_all, reference, samples
from sample import Sample, equal, flat, mapped
from support import Load, extended
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

import xattn
from xattn.dispatch.op import Op
from xattn.ops.table import OPS

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")

# One of each kind: with gradients, of a list, over a batch object, that writes.
in_part = for_all("attention", "merge_attention", "paged_attention", "write_kv")


@pytest.fixture(autouse=True)
def _fresh() -> None:
    torch._dynamo.reset()


def close(got: Any, want: Any) -> None:
    for x, y in zip(flat(got), flat(want), strict=True):
        torch.testing.assert_close(x, y, equal_nan=True)


def gradients(sample: Sample, answer: Any) -> list[Tensor]:
    outputs = [x for x in flat(answer) if x.requires_grad]
    cotangents = [torch.linspace(-1, 1, x.numel(), dtype=x.dtype).view(x.shape) for x in outputs]
    return [x for x in torch.autograd.grad(outputs, sample.leaves, cotangents, allow_unused=True) if x is not None]


@pytest.mark.parametrize(
    ("op", "name"),
    [
        pytest.param(op, name, id=f"{op.name}-{name}", marks=[pytest.mark.extended] if other else [])
        for op in OPS.values()
        for other, name in enumerate(samples(op))
    ],
)
def test_a_compiled_call_is_one_graph(op: Op, name: str, load: Load) -> None:
    load([])
    sample = samples(op)[name]
    got = sample.of(torch.compile(op.function, fullgraph=True, backend="eager"))
    if "dropout" not in name:
        close(got, sample.of(op.function))


@for_all("attention", "varlen_attention")
def test_one_graph_serves_any_length(op: Op, load: Load) -> None:
    load([])
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(op.function, fullgraph=True, backend=counter, dynamic=True)
    graphs = []
    for length in (5, 7, 11):
        sample = samples(op, length)["plain"].requiring_grad()
        got, want = sample.of(compiled), sample.of(op.function)
        close(got, want)
        if sample.leaves:
            close(gradients(sample, got), gradients(sample, want))
        graphs.append(counter.frame_count)
    # The first may be made twice, where a float of a symbolic size turns out to be a tensor's.
    assert graphs[0] == graphs[1] == graphs[2]


@in_part
def test_a_compiled_call_leaves_no_plan_behind(op: Op, mine: Mine) -> None:
    kernel = mine(op)
    sample = samples(op)["plain"]
    got = sample.of(torch.compile(op.function, fullgraph=True, backend="eager"))
    before = kernel.plans
    close(got, sample.of(op.function))
    assert kernel.plans == before + 1


@in_part
@pytest.mark.parametrize("backend", [("mine", "reference"), *extended("reference", ["other", "mine"])], ids=str)
def test_a_compiled_call_of_named_backends(op: Op, backend: Any, mine: Mine) -> None:
    mine(op)
    sample = samples(op)["plain"]
    compiled = torch.compile(lambda: sample.of(op.function, backend=backend), fullgraph=True, backend="eager")
    close(compiled(), sample.of(op.function, backend=backend))


@for_all("attention")
def test_a_compiled_call_follows_the_scope_around_it(op: Op, mine: Mine) -> None:
    """A backend that answers twice the truth says who served."""
    mine(op, plan=lambda self, request: doubled(op, request))
    sample = samples(op)["plain"]
    compiled = torch.compile(lambda: sample.of(op.function), fullgraph=True, backend="eager")
    want = sample.of(op.function, backend="reference")
    twice = [2 * x for x in flat(want)]
    for scope, expected in (("mine", twice), ("reference", want), ("other", twice), ("mine", twice)):
        with xattn.use_backend(scope):
            close(compiled(), expected)
    close(compiled(), twice)


def doubled(op: Op, request: xattn.Request) -> Callable[..., Any]:
    run = reference(op.name).plan(request)

    def run_twice(*tensors: Any, **given: Any) -> Any:
        if op.writes:  # what it writes is twice the truth
            names = inspect.signature(op.function).parameters
            kept = {*op.writes, "slots", "cos", "sin"}
            named = zip(names, tensors, strict=False)
            return run(*(x if name in kept or x is None else 2 * x for name, x in named), **given)
        answer = run(*tensors, **given)
        if isinstance(answer, Tensor):
            return 2 * answer
        parts = [None if x is None else 2 * x for x in answer]
        return type(answer)(*parts) if hasattr(answer, "_fields") else tuple(parts)

    return run_twice


@in_part
def test_a_held_plan_compiles(op: Op, mine: Mine) -> None:
    """One that takes tensors in place alone, and one that takes something by name, where the op has one."""
    mine(op)
    kinds = {bool(op.prepare(*each.tensors, **each.named).given): each for each in samples(op).values()}
    for sample in kinds.values():
        run = sample.of(entries(op)["plan"])
        takes = op.prepare(*sample.tensors, **sample.named)
        compiled = torch.compile(run, fullgraph=True, backend="eager")
        held = replace(sample, tensors=takes.tensors, named=dict(takes.given))
        close(held.of(compiled), sample.of(op.function))


@in_part
def test_an_illegal_call_says_so_from_inside_a_compiled_function(op: Op, mine: Mine) -> None:
    mine(op)
    sample = samples(op)["plain"]
    wrong = Sample((mapped(sample.tensors[0], Tensor.int), *sample.tensors[1:]), sample.named)
    # With fullgraph=True torch.compile speaks in its own words: it cannot trace the making of an exception.
    compiled = torch.compile(op.function, backend="eager")
    with pytest.raises(xattn.InvalidArgumentError, match="got int32"):
        wrong.of(compiled)


@every_sample
def test_fake_tensors_get_the_real_layout_and_leave_nothing_behind(op: Op, name: str, mine: Mine) -> None:
    kernel = mine(op)
    sample = samples(op)[name]
    want = sample.of(op.function, backend="reference")
    before = kernel.plans
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = faked(sample, mode)
        if lacks_bounds(fake):
            with pytest.raises(xattn.InvalidArgumentError, match="for tensors without values"):
                fake.of(op.function)
            return
        answer = [fake.of(op.function) for _ in range(2)][0]
    assert all(isinstance(x, FakeTensor) for x in flat(answer))
    for x, y in zip(flat(answer), flat(want), strict=True):
        assert (x.shape, strides(x), x.dtype) == (y.shape, strides(y), y.dtype)
    assert kernel.plans == before + 2
    for _ in range(2):
        got = sample.of(op.function)
        assert "dropout" in name or equal(got, want)
    assert kernel.plans == before + 3


def strides(x: Tensor) -> list[int]:
    """Of the dimensions that have more than one element: the others' say nothing."""
    return [stride for size, stride in zip(x.shape, x.stride(), strict=True) if size > 1]


def faked(sample: Sample, mode: FakeTensorMode) -> Sample:
    def fake(x: Any) -> Any:
        return mapped(x, mode.from_tensor)

    named = {name: fake(x) for name, x in sample.named.items()}
    return replace(sample, tensors=tuple(map(fake, sample.tensors)), named=named)


def lacks_bounds(sample: Sample) -> bool:
    """Whether a call leaves it to xattn to read its bounds out of tensors."""
    return any(name.startswith("max_seqlen") and value is None for name, value in sample.named.items())
