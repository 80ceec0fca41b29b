"""Over the table of ops: who serves a call, what stops the others, and what `explain` and `plan` say of it."""

from __future__ import annotations

import importlib
import json
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal, get_args, get_origin

import pytest
import torch
from ops.every_op import Counting, another, entries, every_entry, every_op, every_sample, raises, reference, samples
from sample import Sample, equal
from support import ROOT, backend_source, notes_of, run_python, stranger

import xattn
from xattn.dispatch.op import Op
from xattn.ops.table import OPS

Mine = Callable[..., Counting]


def reasons(op: Op, sample: Sample, backend: str) -> list[xattn.Reason]:
    """What stops a backend, which the error of a call by name and `explain` tell alike."""
    with pytest.raises(xattn.UnsupportedError) as caught:
        sample.of(op.function, backend=backend)
    explanation = sample.of(entries(op)["explain"], backend=backend)
    (candidate,) = (each for each in explanation.candidates if each.name == backend)
    assert (explanation.backend, explanation.kernel, candidate.kernel) == (None, None, "")
    assert caught.value.reasons == {backend: list(candidate.reasons)}
    assert caught.value.request == explanation.request
    return list(candidate.reasons)


# ---------------------------------------------------------------------------------------------------------------------
# Reasons
# ---------------------------------------------------------------------------------------------------------------------


@every_op
def test_the_literal_of_its_features_is_its_vocabulary(op: Op) -> None:
    room = importlib.import_module(op.request.__module__)
    (literal,) = (value for value in vars(room).values() if get_origin(value) is Literal and "empty" in get_args(value))
    assert get_args(literal) == op.vocabulary.feature_names


@every_op
def test_the_samples_use_every_word(op: Op, mine: Mine) -> None:
    """So the tests below reach every reason that a capability block can give."""
    mine(op)
    plain = [sample.of(entries(op)["explain"]).request for sample in samples(op).values()]
    trained = [sample.requiring_grad().of(entries(op)["explain"]).request for sample in samples(op).values()]
    (served,) = reference(op.name).capabilities
    assert {name for request in plain for name, _, _ in request.needs()} == served.features
    assert {request.phase for request in (*plain, *trained)} <= set(op.vocabulary.phases)
    assert {name for request in trained for name in request.wanted_grads()} <= set(op.vocabulary.grads)
    assert all(tuple(request.sizes()) == op.vocabulary.sizes for request in plain)


@every_sample
def test_a_kernel_that_declares_nothing_is_stopped_by_all_that_a_call_has(op: Op, name: str, mine: Mine) -> None:
    sizes = dict.fromkeys(op.vocabulary.sizes, (10**6, None, 7))
    nothing = {"dtypes": frozenset(), "features": frozenset(), "grads": frozenset(), "archs": frozenset({"none"})}
    mine(op, declares={**nothing, "sizes": sizes})
    sample = samples(op)[name].requiring_grad()
    found = reasons(op, sample, "mine")
    request = sample.of(entries(op)["explain"]).request
    needs = [name for name, _, _ in request.needs()]
    grads = [f"grad_{name}" for name in request.wanted_grads()]
    assert [reason.code for reason in found] == ["dtype", "arch", *op.vocabulary.sizes, *needs, *grads]
    for reason in found:
        assert all(isinstance(value, str) for value in reason.as_dict().values())
        assert str(reason).startswith(f"{reason.code}={reason.got} (supported: {reason.want})")


@every_sample
def test_each_feature_alone_stops_a_kernel_without_it(op: Op, name: str, mine: Mine) -> None:
    sample = samples(op)[name]
    mine(op)
    request = sample.of(entries(op)["explain"]).request
    every = frozenset(op.vocabulary.feature_names)
    for feature, got, hint in request.needs():
        mine(op, declares={"features": every - {feature}})
        assert reasons(op, sample, "mine") == [xattn.Reason(feature, got, "off", hint)]
        assert sample.of(entries(op)["explain"]).backend == "reference"


@every_op
def test_a_kernel_of_another_device(op: Op, mine: Mine) -> None:
    mine(op, declares={"device": "acme"})
    assert reasons(op, samples(op)["plain"], "mine") == [xattn.Reason("device", "cpu", "acme")]


@every_op
def test_a_backend_without_the_op(op: Op, mine: Mine) -> None:
    mine(op)
    (reason,) = reasons(op, samples(op)["plain"], "other")
    assert (reason.code, reason.got, reason.want) == ("op", op.name, another(op).name)
    with pytest.raises(xattn.UnsupportedError, match="Not asked, and able: reference, mine"):
        samples(op)["plain"].of(op.function, backend="other")
    assert f"without {op.name}: other" in str(samples(op)["plain"].of(entries(op)["explain"]))


@every_op
def test_without_a_backend_that_can_every_reason_is_told(op: Op, mine: Mine) -> None:
    mine(op, disabled=("reference",), declares={"dtypes": frozenset()})
    with pytest.raises(xattn.UnsupportedError) as caught:
        samples(op)["plain"].of(op.function)
    codes = {name: [reason.code for reason in found] for name, found in caught.value.reasons.items()}
    assert codes == {"mine": ["dtype"], "reference": ["disabled"]}
    assert str(caught.value).startswith(f"no backend can serve this call exactly as asked.\n  {op.name}: ")


# ---------------------------------------------------------------------------------------------------------------------
# explain and plan
# ---------------------------------------------------------------------------------------------------------------------


@every_sample
def test_explain_says_who_serves_and_what_runs(op: Op, name: str, mine: Mine) -> None:
    mine(op)
    explanation = samples(op)[name].of(entries(op)["explain"])
    assert (explanation.backend, explanation.kernel, explanation.choice) == ("mine", "counting", "auto")
    assert sorted(candidate.name for candidate in explanation.candidates) == ["mine", "other", "reference"]
    assert explanation.request.op == op.name
    document = explanation.as_dict()
    assert json.loads(json.dumps(document)) == document
    assert str(explanation).startswith(f"{explanation.request}\nbackend: mine (counting)\nreference could (")


@every_sample
def test_explain_runs_and_plans_nothing(op: Op, name: str, mine: Mine) -> None:
    kernel = mine(op)
    samples(op)[name].of(entries(op)["explain"])
    assert kernel.plans == 0


@every_sample
def test_a_plan_gives_what_the_call_gives(op: Op, name: str, mine: Mine) -> None:
    kernel = mine(op)
    for sample in (samples(op)[name], samples(op)[name].requiring_grad()):
        want = sample.of(op.function)
        before = kernel.plans
        run = sample.of(entries(op)["plan"])
        takes = op.prepare(*sample.tensors, **sample.named)
        held = replace(sample, tensors=takes.tensors, named=dict(takes.given))
        for _ in range(2):
            assert equal(held.of(run), want)
        assert kernel.plans == before + 1
        with pytest.raises(TypeError, match=r"unexpected keyword|by name, got"):
            run(*takes.tensors, **takes.given, surprise=1)


def test_a_tensor_in_first_place_means_attention() -> None:
    attention = OPS["attention"]
    sample = samples(attention)["causal"]
    assert str(sample.of(xattn.explain)) == str(sample.of(entries(attention)["explain"]))
    assert equal(sample.of(xattn.plan)(*sample.tensors), sample.of(xattn.attention))


@pytest.mark.parametrize("ask", [xattn.explain, xattn.plan])
def test_a_function_that_is_no_op(ask: Callable[..., Any]) -> None:
    with pytest.raises(xattn.InvalidArgumentError, match=f"function: got use_backend, want .*{', '.join(OPS)}"):
        ask(xattn.use_backend, torch.ones(1))


# ---------------------------------------------------------------------------------------------------------------------
# The choice
# ---------------------------------------------------------------------------------------------------------------------


def asked(op: Op, **more: Any) -> str | None:
    """Who serves the plain call, by `explain`, which the call itself must bear out."""
    sample = samples(op)["plain"]
    backend: str | None = sample.of(entries(op)["explain"], **more).backend
    if backend is None:
        with pytest.raises(xattn.UnsupportedError):
            sample.of(op.function, **more)
    else:
        sample.of(op.function, **more)
    return backend


@every_op
def test_scopes_hold_for_the_ops_that_their_backends_have(op: Op, mine: Mine) -> None:
    mine(op)
    assert asked(op) == "mine"
    with xattn.use_backend("reference"):
        assert asked(op) == "reference"
        assert asked(op, backend="mine") == "mine"
        with xattn.use_backend("other"):
            # None of the scope's backends has the op: auto decides.
            assert asked(op) == "mine"
            assert asked(another(op)) == "other"
        with xattn.use_backend(["other", "reference"]):
            assert asked(op) == "reference"
            assert asked(another(op)) == "other"
        with xattn.use_backend("auto"):
            assert asked(op) == "mine"


@every_op
def test_a_scope_does_not_fall_through_where_a_backend_has_the_op(op: Op, mine: Mine) -> None:
    mine(op, declares={"dtypes": frozenset()})
    for scope in ("mine", "mine-plugin", ["other", "mine"]):
        with xattn.use_backend(scope):
            assert asked(op) is None
    with xattn.use_backend(["mine", "reference"]):
        assert asked(op) == "reference"


@every_op
def test_a_backend_by_name_never_falls_through(op: Op, mine: Mine) -> None:
    mine(op)
    for name in ("other", "other-plugin", ["other"], ("other", "other-plugin")):
        assert asked(op, backend=name) is None
        with xattn.use_backend("mine"):
            assert asked(op, backend=name) is None
    assert asked(op, backend=["other", "mine"]) == "mine"


@every_op
def test_a_disabled_backend_is_passed_over_and_its_name_is_refused(op: Op, mine: Mine) -> None:
    kernel = mine(op, disabled=("mine",))
    assert asked(op) == "reference"
    (reason,) = reasons(op, samples(op)["plain"], "mine")
    assert (reason.code, reason.got) == ("disabled", "by XATTN_DISABLE=mine")
    note = "mine ranks higher and could serve this call, but is disabled by XATTN_DISABLE=mine"
    assert note in samples(op)["plain"].of(entries(op)["explain"]).notes
    assert kernel.plans == 0


def test_the_environment_is_a_wish_as_a_scope_is(tmp_path: Any, strangers: Any) -> None:
    """XATTN_BACKEND and XATTN_DISABLE, in a process of their own, for every op at once."""
    stranger(strangers, "one", backend_source("one", 1))
    stranger(strangers, "two", backend_source("two", 2, priority=3000))
    code = """
    import json, xattn
    from ops.every_op import OPS, entries, samples

    told = {}
    for op in OPS.values():
        sample = samples(op)["plain"]
        sample.of(op.function)
        told[op.name] = [sample.of(entries(op)["explain"], backend=backend).backend for backend in ("auto", "one")]
    print(json.dumps(told))
    """
    path = [strangers, ROOT / "tests", ROOT, ROOT / "plugins"]
    told = json.loads(run_python(code, tmp_path, path, XATTN_BACKEND="one", XATTN_DISABLE="two,sdpa,rocm"))
    others = {name: ["reference", None] for name in OPS if name != "attention"}
    assert told == {"attention": ["one", "one"], **others}


@every_op
@every_entry
@pytest.mark.parametrize("backend", ["mein", ["other", "mein"]])
def test_an_unknown_backend(op: Op, entry: str, backend: Any, mine: Mine) -> None:
    mine(op)
    with pytest.raises(xattn.UnknownBackendError, match=r"no backend or plugin is called 'mein'.*Did you mean .mine."):
        samples(op)["plain"].of(entries(op)[entry], backend=backend)


@every_op
@every_entry
@pytest.mark.parametrize("backend", [None, 3, ["mine", 3], {"mine": 1}], ids=str)
def test_a_backend_of_a_wrong_type(op: Op, entry: str, backend: Any, mine: Mine) -> None:
    mine(op)
    with pytest.raises(xattn.InvalidArgumentError, match=r"^backend: got .*, want a name, a tuple or list of names"):
        samples(op)["plain"].of(entries(op)[entry], backend=backend)


# ---------------------------------------------------------------------------------------------------------------------
# Backends that break
# ---------------------------------------------------------------------------------------------------------------------

BROKEN: dict[str, tuple[str, Callable[..., Any]]] = {
    "reasons() raised KeyError: 'gfx'": ("reasons", raises(KeyError("gfx"))),
    "reasons() raised SystemExit: 1": ("reasons", raises(SystemExit(1))),
    "reasons() raised OSError: no driver": ("block", raises(OSError("no driver"))),
    "reasons() raised ZeroDivisionError": ("limits", raises(ZeroDivisionError())),
    "reasons() returned None": ("reasons", lambda self, request: None),
    "reasons() returned 'too big'": ("reasons", lambda self, request: "too big"),
}


@every_op
@pytest.mark.parametrize("says", BROKEN)
def test_a_backend_that_cannot_answer_is_passed_over_and_said_once(op: Op, says: str, mine: Mine) -> None:
    mine(op, **dict([BROKEN[says]]))
    sample = samples(op)["plain"]
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        got = sample.of(op.function)
        samples(op)["float64"].of(op.function)
        sample.of(entries(op)["plan"])
    (warning,) = (each for each in told if each.category is xattn.BrokenBackendWarning)
    assert str(warning.message).startswith(f"xattn goes on without the backend 'mine': broken={says}")
    assert equal(got, sample.of(op.function, backend="reference"))
    (reason,) = reasons(op, sample, "mine")
    assert reason.code == "broken"
    assert any(note.startswith(f"mine may rank higher, but is broken: {says}") for note in notes(op, sample))


def notes(op: Op, sample: Sample) -> tuple[str, ...]:
    found: tuple[str, ...] = sample.of(entries(op)["explain"]).notes
    return found


@every_op
@pytest.mark.parametrize("entry", ["call", "plan"])
def test_the_warning_points_at_the_caller(op: Op, entry: str, mine: Mine) -> None:
    mine(op, reasons=raises(KeyError("gfx")))
    sample, function = samples(op)["plain"], entries(op)[entry]
    with pytest.warns(xattn.BrokenBackendWarning) as told:
        function(*sample.tensors, **sample.named)
    assert told[0].filename == function.__code__.co_filename if entry == "plan" else __file__


@every_op
def test_a_plan_that_raises_is_an_error_with_a_note(op: Op, mine: Mine) -> None:
    mine(op, plan=raises(OSError("out of streams")))
    for entry in ("call", "call", "plan"):  # a failure is not remembered as a plan
        with pytest.raises(OSError, match="out of streams") as caught:
            samples(op)["plain"].of(entries(op)[entry])
        assert f"plan() of xattn's backend 'mine', which had accepted {op.name}: " in notes_of(caught.value)[-1]


@every_sample
def test_a_kernel_that_raises_is_an_error_with_a_note(op: Op, name: str, mine: Mine) -> None:
    mine(op, plan=lambda self, request: raises(RuntimeError("invalid argument")))
    sample = samples(op)[name]
    run = sample.of(entries(op)["plan"])
    takes = op.prepare(*sample.tensors, **sample.named)
    calls: list[Callable[[], Any]] = [*[lambda: sample.of(op.function)] * 2, lambda: run(*takes.tensors, **takes.given)]
    for call in calls:
        with pytest.raises(RuntimeError, match="invalid argument") as caught:
            call()
        assert f"raised by xattn's backend 'mine' for {op.name}: " in notes_of(caught.value)[-1]
        notes_of(caught.value).clear()  # the one error object is raised again


@every_op
def test_a_kernel_without_a_name_serves_all_the_same(op: Op, mine: Mine) -> None:
    mine(op, kernel_name=raises(KeyError("table")))
    explanation = samples(op)["plain"].of(entries(op)["explain"])
    assert (explanation.backend, explanation.kernel) == ("mine", "mine")
    assert "mine: kernel_name() raised KeyError: 'table'" in explanation.notes
    assert asked(op) == "mine"
