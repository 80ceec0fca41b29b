"""A backend of several kernels: of those of one op the capable one of the highest priority serves, and of none that can
the reasons of the closest are told."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ops.every_op import Counting, another, entries, every_op, kernel_of, reference, samples
from support import Load, backend_of, plugin

import xattn
from xattn.dispatch.op import Op


def named(op: Op, name: str, priority: int, **declares: Any) -> Counting:
    return kernel_of(op, priority=priority, declares=declares, kernel_name=lambda self, request: name)


def runs(op: Op, sample: str = "plain", **more: Any) -> str:
    """The kernel that a call gets: what `explain` says, and the kernel that then makes a plan."""
    kernel: str = samples(op)[sample].of(entries(op)["explain"], **more).kernel
    samples(op)[sample].of(op.function, **more)
    return kernel


@every_op
@pytest.mark.parametrize("backend", ["auto", "many", ["many"]], ids=str)
def test_the_capable_kernel_of_the_highest_priority_serves(op: Op, backend: Any, load: Load) -> None:
    narrow = {"dtypes": frozenset({torch.float32})}
    slow, fast, elsewhere = (
        named(op, "slow", 10),
        named(op, "fast", 20, **narrow),
        named(op, "elsewhere", 30, device="acme"),
    )
    load([plugin("acme", backend_of("many", slow, elsewhere, fast, kernel_of(another(op))))])
    assert runs(op, backend=backend) == "fast"
    assert (slow.plans, fast.plans, elsewhere.plans) == (0, 1, 0)
    assert runs(op, "float64", backend=backend) == "slow"
    assert (slow.plans, fast.plans, elsewhere.plans) == (1, 1, 0)


@every_op
def test_kernels_of_two_backends_take_their_places_by_priority(op: Op, load: Load) -> None:
    """One backend may be first and third."""
    first = named(op, "first", 30, dtypes=frozenset({torch.float32}))
    between = named(op, "between", 20, dtypes=frozenset({torch.float64}))
    last = named(op, "last", 10)
    load([plugin("acme", backend_of("outer", last, first), backend_of("inner", between))])
    assert runs(op) == "first"
    assert runs(op, "float64") == "between"
    assert runs(op, "float64", backend=["outer", "inner"]) == "last"


@every_op
def test_the_reasons_of_the_closest_kernel_are_told(op: Op, load: Load) -> None:
    far = named(op, "far", 30, dtypes=frozenset(), archs=frozenset({"none"}))
    close = named(op, "close", 10, dtypes=frozenset())
    elsewhere = named(op, "elsewhere", 40, device="acme")
    load([plugin("acme", backend_of("many", elsewhere, far, close))])
    with pytest.raises(xattn.UnsupportedError) as caught:
        samples(op)["plain"].of(op.function, backend="many")
    assert [reason.code for reason in caught.value.reasons["many"]] == ["dtype"]
    # A kernel for the device is closer than any other, however much stops it.
    load([plugin("acme", backend_of("many", elsewhere, far))])
    with pytest.raises(xattn.UnsupportedError) as caught:
        samples(op)["plain"].of(op.function, backend="many")
    assert [reason.code for reason in caught.value.reasons["many"]] == ["dtype", "arch"]


@every_op
def test_the_priority_of_a_phase_counts(op: Op, load: Load) -> None:
    phases = op.vocabulary.phases
    if "train" not in phases or len(phases) == 1:
        pytest.skip(f"{op.name} has no phase of training beside others")
    trains = kernel_of(
        op, declares={"priority": {"default": 5, "train": 50}}, kernel_name=lambda self, request: "trains"
    )
    load([plugin("acme", backend_of("many", trains, named(op, "infers", 20)))])
    assert runs(op) == "infers"
    request = samples(op)["plain"].requiring_grad().of(entries(op)["explain"])
    assert (request.request.phase, request.kernel) == ("train", "trains")


@every_op
def test_the_reference_backend_has_the_op_and_ranks_last(op: Op) -> None:
    (block,) = reference(op.name).capabilities
    assert block.device == "any"
    # FP8 queries nobody serves yet.
    assert frozenset(op.vocabulary.feature_names) - block.features <= {"q_scale"}
    assert block.grads == frozenset(op.vocabulary.grads)
    assert dict(block.priority) == {"default": 0}
    able = [each.name for each in samples(op)["plain"].of(entries(op)["explain"]).candidates if not each.reasons]
    assert able[-1] == "reference"


@every_op
def test_a_kernel_with_a_name_can_be_asked_for_by_itself(op: Op, load: Load) -> None:
    slow = kernel_of(op, priority=10, name="careful", kernel_name=lambda self, request: "slow")
    fast = named(op, "fast", 20)
    load([plugin("acme", backend_of("many", slow, fast, kernel_of(another(op))))])
    assert runs(op, backend="many.careful") == "slow"
    assert runs(op, backend=["many.careful", "many"]) == "slow"
    assert runs(op) == "fast"
    with xattn.use_backend("many.careful"):
        assert runs(op) == "slow"
    with pytest.raises(xattn.UnknownBackendError, match=r"many\.careful"):
        samples(op)["plain"].of(op.function, backend="many.nobody")


@every_op
def test_a_kernel_may_rank_itself_by_the_call(op: Op, load: Load) -> None:
    fast = kernel_of(
        op,
        kernel_name=lambda self, request: "fast",
        rank=lambda self, request: 5 if request.dtype == torch.float64 else 20,
    )
    load([plugin("acme", backend_of("many", fast, named(op, "slow", 10)))])
    assert (runs(op), runs(op, "float64")) == ("fast", "slow")
