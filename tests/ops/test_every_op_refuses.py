"""Over the table of ops: every illegal call of each, what is raised, which argument it names, what it says, and that
nothing lingers."""

from __future__ import annotations

import copy
import inspect
import pickle
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from ops.every_op import Counting, entries, every_entry, every_op, every_sample, illegal, samples
from sample import Illegal, equal

import xattn
from xattn.dispatch import guard
from xattn.dispatch.op import Op
from xattn.ops.shared.spelling import OTHERS
from xattn.ops.table import OPS

every_fault = pytest.mark.parametrize(
    ("op", "fault"), [pytest.param(op, fault, id=f"{op.name}-{fault}") for op in OPS.values() for fault in illegal(op)]
)


def refusal(function: Callable[..., Any], wrong: Illegal) -> xattn.InvalidArgumentError:
    with pytest.raises(xattn.InvalidArgumentError) as caught:
        wrong.call.of(function)
    return caught.value


@every_fault
@every_entry
def test_a_wrong_argument_is_named_with_what_is_legal(op: Op, fault: str, entry: str) -> None:
    wrong = illegal(op)[fault]
    error = refusal(entries(op)[entry], wrong)
    assert error.argument == wrong.argument
    message = str(error)
    assert message.startswith(f"{wrong.argument}: got ")
    assert f", want {error.want}" in message
    assert error.want
    for part in wrong.said:
        assert part in message
    assert isinstance(error, ValueError)
    assert isinstance(error, xattn.XattnError)
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert (type(again), str(again), again.argument) == (type(error), message, error.argument)
    plain = samples(op)["plain"]
    assert equal(plain.of(op.function), plain.of(op.function))


@every_fault
@pytest.mark.parametrize("by", ["torch's guard", "python_guard"])
def test_remembered_plans_let_nothing_through(op: Op, fault: str, by: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """After legal calls that differ from it in its fault alone, a wrong one gets the same error as at first."""
    if by == "python_guard":
        monkeypatch.setattr(guard, "TensorGuards", None)
    wrong = illegal(op)[fault]
    first = str(refusal(op.function, wrong))
    for sample in wrong.beside:
        sample.of(op.function)
        sample.of(op.function)
    for _ in range(2):
        assert str(refusal(op.function, wrong)) == first


@every_op
@every_entry
def test_a_keyword_of_another_library(op: Op, entry: str) -> None:
    takes = inspect.signature(op.function).parameters
    for wrong, (argument, text) in OTHERS.items():
        if wrong in takes:  # it is called so here too
            continue
        message = rf"^{op.name}\(\) got an unexpected keyword argument '{wrong}'\. "
        with pytest.raises(TypeError, match=message) as caught:
            samples(op)["plain"].of(entries(op)[entry], **{wrong: True})
        if argument in takes:
            assert text in str(caught.value)
        else:  # names no argument that the function does not have
            named = re.findall(r"(\w+)=", str(caught.value))
            assert set(named) <= set(takes)


@every_op
def test_a_keyword_of_another_library_has_no_argument_of_that_name(op: Op) -> None:
    """But for the words of an op with one set of sequences, which others say for queries alone."""
    assert OTHERS.keys() & inspect.signature(op.function).parameters.keys() <= {"cu_seqlens", "max_seqlen"}


@every_op
@every_entry
def test_a_misspelt_keyword(op: Op, entry: str) -> None:
    for right in list(inspect.signature(op.function).parameters)[-3:-1]:
        wrong = right[:-2] + right[-1] + right[-2]
        said = rf"unexpected keyword argument '{wrong}'\. Did you mean {right}=\?"
        with pytest.raises(TypeError, match=said):
            samples(op)["plain"].of(entries(op)[entry], **{wrong: True})


@every_op
def test_what_is_unexpected_is_no_part_of_the_signature(op: Op) -> None:
    kinds = {each.kind for each in inspect.signature(op.function).parameters.values()}
    assert kinds == {inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY}


@every_op
@every_entry
def test_an_argument_too_many_in_place(op: Op, entry: str) -> None:
    parameters = inspect.signature(op.function).parameters.values()
    places = [each.name for each in parameters if each.kind is each.POSITIONAL_OR_KEYWORD]
    required = [each.name for each in parameters if each.kind is each.KEYWORD_ONLY and each.default is each.empty]
    counts = f"{op.name}() takes {len(places)} positional arguments but {len(places) + 2} were given"
    said = re.escape(f"{counts}. In place are {', '.join(places)}, the others go by name")
    with pytest.raises(TypeError, match=f"^{said}"):
        entries(op)[entry](*[None] * len(places), True, None, **dict.fromkeys(required))


@every_op
@pytest.mark.parametrize("entry", ["explain", "plan"])
def test_an_argument_too_few_is_told_of_the_function(op: Op, entry: str) -> None:
    first = next(iter(inspect.signature(op.function).parameters))
    with pytest.raises(TypeError, match=rf"^{op.name}\(\): missing a required argument: '{first}'$"):
        getattr(xattn, entry)(op.function)


def test_the_name_of_a_function_is_not_the_function() -> None:
    with pytest.raises(xattn.InvalidArgumentError, match=r"Pass the function itself, as xattn\.attention"):
        xattn.explain("attention", 1)  # type: ignore[call-overload]


@every_op
@pytest.mark.parametrize("wrong", [None, 3])
def test_what_is_no_name_of_a_backend(op: Op, wrong: object) -> None:
    with pytest.raises(xattn.InvalidArgumentError, match=r"Left out, .* xattn\.backends\(\) has the names"):
        samples(op)["plain"].of(op.function, backend=wrong)


@every_op
def test_an_illegal_call_reaches_no_backend(op: Op, mine: Callable[..., Counting]) -> None:
    kernel = mine(op)
    for wrong in illegal(op).values():
        refusal(op.function, wrong)
    assert kernel.plans == 0


@every_sample
def test_a_held_plan_takes_by_name_what_it_was_made_with(op: Op, name: str) -> None:
    """A tensor where there was a tensor, an int where there was an int; anything else computes nothing."""
    sample = samples(op)[name]
    run = sample.of(entries(op)["plan"], backend="reference")
    takes = op.prepare(*sample.tensors, **sample.named)
    for given, value in takes.given.items():
        wrong: tuple[Any, ...] = ("top_left", 1, None) if isinstance(value, torch.Tensor) else (2.0, True, 2**70, None)
        for each in wrong:
            with pytest.raises(xattn.InvalidArgumentError, match=rf"^{given}: got .*, as the plan was made with$"):
                run(*takes.tensors, **{**takes.given, given: each})


@pytest.mark.parametrize("op", [pytest.param(op, id=name) for name, op in OPS.items() if not op.vocabulary.grads])
def test_an_op_that_is_forward_only_refuses_tangents(op: Op) -> None:
    """A derivative in forward mode would be 0 in silence."""
    plain = samples(op)["plain"]
    first, *others = plain.tensors
    with pytest.raises(xattn.UnsupportedError, match="grad"):
        torch.func.jvp(lambda x: op.function(x, *others, **plain.named), (first,), (torch.ones_like(first),))
