"""The runner against strangers' backends that are wrong in every way: each costs its case, says why, and no more."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from conformance.strangers import PROFILE, honest, one
from support import backend_source, stranger
from xattn_conformance.case import Case
from xattn_conformance.ops.registry import OPS
from xattn_conformance.profiles.schema import parse
from xattn_conformance.result import CaseResult
from xattn_conformance.running import selection, target
from xattn_conformance.running.judge import judge
from xattn_conformance.running.target import Target

import xattn

Load = Callable[..., Any]


@pytest.fixture
def judged(strangers: Path, load: Load) -> Callable[..., Target]:
    """A target of a stranger's backend in this process. body: members of its class."""

    def make(body: str, name: str = "acme", profile: str = "") -> Target:
        found = stranger(strangers, name, backend_source(name, 0.0, body=body))
        load(found)
        return target.make(name, "cpu", parse((profile or PROFILE).format(name)))

    return make


CAUSAL = "attention/causal+lse/float32/b1-q33-k65-h2-g2-d8-v8/normal"


def failed(result: CaseResult) -> set[str]:
    return {check.name for check in result.checks if not check.ok}


def test_a_right_backend_passes(judged: Callable[..., Target]) -> None:
    result = judge(one(CAUSAL), judged(honest()))
    assert (result.status, result.message, failed(result)) == ("PASS", "", set())
    assert result.kernel == "Attention"
    assert result.provenance == "hardware"
    assert {"out.shape", "out.dtype", "out.device", "out.contiguous", "lse.shape", "inputs.written", "out.zmax"} <= {
        check.name for check in result.checks
    }
    assert len(result.inputs) == len(result.output) == 64


WRONG = {
    "nan": ("found.out.fill_(float('nan'))", "out.finite", "out.finite"),
    "shape": ("found = found._replace(out=found.out[:, :-1])", "results.kind", "want (1, 33, 2, 8) float32"),
    "dtype": ("found = found._replace(out=found.out.double())", "results.kind", "float64 on cpu as out, want"),
    "lse dtype": ("found = found._replace(lse=found.lse.half())", "results.kind", "float16 on cpu as lse, want"),
    "lse shape": ("found = found._replace(lse=found.lse[..., None])", "results.kind", "want (1, 2, 33) float32"),
    "strides": (
        "found = found._replace(out=found.out.transpose(1, 2).contiguous().transpose(1, 2))",
        "results.kind",
        "as out, want a contiguous (1, 33, 2, 8)",
    ),
    "device": ("found = found._replace(lse=found.lse.to('meta'))", "results.kind", "on meta as lse"),
    "writes": ("k[0, 0, 0, 0] += 1", "inputs.written", "the call wrote into its inputs: k (1 elements)"),
    "value": ("found.out[0, 3, 0, 2] += 0.01", "out.zmax", "out.zmax is"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_result_fails_in_words(name: str, judged: Callable[..., Target]) -> None:
    after, check, said = WRONG[name]
    result = judge(one(CAUSAL), judged(honest(after=after)))
    assert said in result.message, result.message
    assert result.status == "FAIL"
    assert check in failed(result)
    assert result.reproduce.startswith("xattn-conformance run --backend acme --device cpu ")


def test_what_has_the_wrong_shape_is_not_compared(judged: Callable[..., Target]) -> None:
    result = judge(one(CAUSAL), judged(honest(after=WRONG["shape"][0])))
    assert failed(result) == {"results.kind"}
    assert not any(check.name.endswith("zmax") for check in result.checks)


def test_the_worst_element_is_named(judged: Callable[..., Target]) -> None:
    result = judge(one(CAUSAL), judged(honest(after=WRONG["value"][0])))
    assert result.worst is not None
    assert (result.worst.tensor, result.worst.index) == ("out", (0, 0, 3, 2))


@pytest.mark.parametrize("returned", ["None", "(found.out, found.lse)", "found.out"])
def test_something_else_than_the_contract_returns(returned: str, judged: Callable[..., Target]) -> None:
    result = judge(one(CAUSAL), judged(honest(after=f"found = {returned}")))
    assert result.status == "FAIL"
    assert "the backend returned" in result.message


def test_an_exception_is_the_cases_error(judged: Callable[..., Target], tmp_path: Path) -> None:
    result = judge(one(CAUSAL), judged(honest(before="raise RuntimeError('the vendor says no')")))
    assert (result.status, result.message) == ("ERROR", "RuntimeError: the vendor says no")
    assert "raise RuntimeError" in result.detail
    assert str(tmp_path) not in result.detail
    assert str(Path(xattn.__file__).parents[1]) not in result.detail


def test_sys_exit_is_the_cases_error(judged: Callable[..., Target]) -> None:
    assert judge(one(CAUSAL), judged(honest(before="raise SystemExit(3)"))).message == "SystemExit: 3"


NO_SOFTCAP = """
def limits(self, request):
    return [xattn.Reason("softcap", request.softcap, "off")] if request.softcap is not None else []
"""
SOFTCAP = "attention/softcap=*+lse/float32/*/normal"


def test_what_is_declined_as_declared_is_unsupported(judged: Callable[..., Target]) -> None:
    result = judge(one(SOFTCAP), judged(honest(more=NO_SOFTCAP)))
    assert result.status == "UNSUPPORTED"
    assert [reason["code"] for reason in result.reasons] == ["softcap"]
    assert result.checks == ()


def test_other_reasons_than_stated_fail(judged: Callable[..., Target]) -> None:
    more = """
    asked = 0

    def limits(self, request):
        Attention.asked += 1
        return [xattn.Reason("softcap", Attention.asked, "off")]
    """
    result = judge(one(SOFTCAP), judged(honest(more=more)))
    assert result.status == "FAIL"
    assert "states the reasons softcap, and raises with others: softcap" in result.message


def test_declining_without_a_reason_fails(judged: Callable[..., Target]) -> None:
    before = "raise xattn.UnsupportedError('not today', request, {'acme': []})"
    result = judge(one(CAUSAL), judged(honest(before=before)))
    assert (result.status, result.message) == ("FAIL", "states no reason, and declines: not today")


def test_serving_what_was_declined_fails(judged: Callable[..., Target], monkeypatch: pytest.MonkeyPatch) -> None:
    found = judged(honest(more=NO_SOFTCAP))
    willing = Target(found.backend, "cpu", "cpu", found.profile, lambda *_: torch.zeros(1), "hardware")
    result = judge(one(SOFTCAP), willing)
    assert result.status == "FAIL"
    assert result.message == "states reasons (softcap), and serves the call all the same"


def test_reasons_that_raise_are_an_error(judged: Callable[..., Target]) -> None:
    result = judge(one(CAUSAL), judged(honest(more="def limits(self, request):\n    raise OSError('no driver')")))
    assert result.status == "ERROR"
    assert "acme is broken: reasons() raised OSError: no driver" in result.message


def test_accepting_what_is_not_declared_fails(judged: Callable[..., Target]) -> None:
    more = """
    capabilities = (xattn.Capabilities(device="cpu", dtypes=frozenset({torch.float32}), checked="never",
                    features=frozenset(WORDS.feature_names) - {"softcap"}),)

    def reasons(self, request):
        return []
    """
    result = judge(one(SOFTCAP), judged(honest(more=more)))
    assert (result.status, result.message) == ("FAIL", "accepted softcap without declaring it")


def test_a_knob_that_is_accepted_and_ignored_fails(judged: Callable[..., Target]) -> None:
    knob = one("attention/knob.softcap/*")
    deaf = "plan(__import__('dataclasses').replace(request, softcap=None))"
    result = judge(knob, judged(honest().replace("plan(request)", deaf)))
    assert result.status == "FAIL"
    assert result.message == "accepted and ignored: the answer is right for the call without it"
    assert {"knob.ignored", "out.zmax"} <= failed(result)


@pytest.mark.parametrize(
    ("after", "bad"),
    [("found.out.mul_(1.01)", "out.zmax"), ("k.add_(1)", "inputs.written")],
)
def test_a_knob_that_does_something_else_fails(after: str, bad: str, judged: Callable[..., Target]) -> None:
    """It is told from the call without it, and wrong."""
    result = judge(one("attention/knob.softcap/*"), judged(honest(after=after)))
    assert result.status == "FAIL"
    assert bad in failed(result)
    assert "knob.ignored" not in failed(result)


def test_a_knob_that_is_heard_passes(judged: Callable[..., Target]) -> None:
    for case in selection.select("core", ["float32"], "attention/knob.*"):
        result = judge(case, target_of_reference())
        assert result.status == "PASS", f"{case.id}: {result.message}"
        assert ("dropout.share" in {check.name for check in result.checks}) == ("dropout" in case.id)


def target_of_reference() -> Target:
    return target.make("reference", "cpu", parse(PROFILE.format("reference")))


def with_variations(pattern: str, *names: str) -> Case:
    """A case with the variations of a test; the inputs follow from the id, which has none."""
    return msgspec.structs.replace(one(pattern), variations=names)


BATCHED = "attention/causal+lse/float32/b2-*/normal"
PROMISE = PROFILE + "[bitwise]\nbatch = true\nstrides = true\npadding = true\n"


@pytest.mark.parametrize("name", ["repeat", "strides", "batch", "padding", "poison"])
def test_variations_of_a_right_backend_pass(name: str) -> None:
    result = judge(with_variations(BATCHED, name), target_of_reference())
    assert result.status == "PASS", result.message
    promised = name in ("repeat", "poison")
    assert any(check.name == f"{name}.bits" for check in result.checks) == promised
    assert any(check.name == f"{name}:out.zmax" for check in result.checks) != promised


# What breaks under each variation alone: (variation, what the backend does wrong).
VARIED = {
    "repeat": "Stranger.calls = getattr(Stranger, 'calls', 0) + 1; found.out.mul_(1 + 1e-3 * (Stranger.calls - 1))",
    "strides": "found.out.mul_(1 if v.is_contiguous() else 1.001)",
    "batch": "found.out.mul_(1 if q.shape[0] > 1 else 1.001)",
    "padding": "found.out.mul_(1.001 if 'seqlens_k' in tensors else 1)",
}


@pytest.mark.parametrize("profile", [PROFILE, PROMISE], ids=["compared", "bitwise"])
@pytest.mark.parametrize("name", VARIED)
def test_a_variation_that_changes_the_answer_fails(name: str, profile: str, judged: Callable[..., Target]) -> None:
    result = judge(with_variations(BATCHED, name), judged(honest(after=VARIED[name]), profile=profile))
    assert result.status == "FAIL"
    bad = failed(result)
    assert bad
    assert all(check.startswith(name) for check in bad), bad
    if profile is PROMISE or name == "repeat":
        assert bad == {f"{name}.bits"}


def test_poison_that_reaches_the_output_fails(judged: Callable[..., Target]) -> None:
    case = msgspec.structs.replace(one("attention/*/float32/*/poison"), variations=("poison",))
    leak = "found.out[0, 0, 0, 0] += 1e-6 * v.isnan().any()"
    result = judge(case, judged(honest(after=leak)))
    assert "poison.bits" in failed(result)


def test_a_variation_that_is_declined_is_left_out_in_words(judged: Callable[..., Target]) -> None:
    more = """
    capabilities = (xattn.Capabilities(device="cpu", dtypes=frozenset({torch.float32}), checked="never",
                    features=frozenset(WORDS.feature_names) - {"seqlens_k"}),)
    """
    result = judge(with_variations(BATCHED, "padding"), judged(honest(more=more)))
    assert (result.status, result.message) == ("PASS", "the variation padding is left out: declined for seqlens_k")
    assert result.left_out == {"padding": ("seqlens_k",)}


@pytest.mark.parametrize("name", ["repeat", "poison"])
def test_the_same_request_is_not_declined_later(name: str, judged: Callable[..., Target]) -> None:
    more = """
    served = False

    def limits(self, request):
        return [xattn.Reason("seqlen", "not now", "never")] if Attention.served else []
    """
    result = judge(with_variations(BATCHED, name), judged(honest("Attention.served = True", more=more)))
    assert result.status == "FAIL"
    assert failed(result) == {f"{name}.declined"}
    assert "declines for seqlen: its reasons changed between calls" in result.message
    assert result.left_out == {}


def test_one_buffer_for_every_call_fails(judged: Callable[..., Target]) -> None:
    """Compared with itself, it would keep every promise of bits."""
    steps = (
        "Stranger.calls = getattr(Stranger, 'calls', 0) + 1",
        "found.out.mul_(1 + 1.2e-7 * Stranger.calls)",
        "Stranger.buffer = getattr(Stranger, 'buffer', found.out).copy_(found.out)",
        "found = found._replace(out=Stranger.buffer)",
    )
    result = judge(with_variations(BATCHED, "repeat"), judged(honest(after="; ".join(steps))))
    assert failed(result) == {"repeat.bits", "results.kept"}
    assert "a later call wrote into the results of an earlier one: out (" in result.message


def test_chance_where_none_was_asked_for_is_no_repetition(judged: Callable[..., Target]) -> None:
    after = "found.out.mul_(1 + 5e-7 * torch.rand(()))"
    assert failed(judge(with_variations(BATCHED, "repeat"), judged(honest(after=after)))) == {
        "repeat.bits",
        "state.kept",
    }


def test_a_variations_inputs_are_kept_too(judged: Callable[..., Target]) -> None:
    after = "None if v.is_contiguous() else v.mul_(2)"
    result = judge(with_variations(BATCHED, "strides"), judged(honest(after=after)))
    assert failed(result) == {"inputs.written"}
    assert "wrote into its inputs: v with the same values in another memory layout (" in result.message


def test_the_command_names_the_profile_of_the_run(judged: Callable[..., Target]) -> None:
    found = replace(judged(honest()), profile_file="my profile.toml")
    assert "--profile 'my profile.toml' --case " in judge(one(CAUSAL), found).reproduce


def test_inputs_that_are_not_the_manifests_are_invalid(
    judged: Callable[..., Target], monkeypatch: pytest.MonkeyPatch
) -> None:
    case, found = one(CAUSAL), judged(honest())
    op = type(OPS["attention"])
    monkeypatch.setattr(op, "digest", lambda self, problem: "0" * 64)
    assert judge(case, found).message == "the inputs made here are not the golden ones"
    unknown = msgspec.structs.replace(case, title="of nobody")
    assert judge(unknown, found).message == "the golden inputs do not have those of this case"
    assert judge(case, found).status == judge(unknown, found).status == "INVALID"


def test_gradients_are_judged(judged: Callable[..., Target]) -> None:
    case = one("attention/grad.qkv*:causal+lse/float32/*/normal")
    assert judge(case, judged(honest())).status == "PASS"


def test_a_detached_output_fails(judged: Callable[..., Target]) -> None:
    case = one("attention/grad.qkv*:causal+lse/float32/*/normal")
    result = judge(case, judged(honest(after="found = xattn.AttentionOutput(found.out.detach(), found.lse.detach())")))
    assert result.status == "FAIL"
    assert "returned a tensor without a gradient as out" in result.message, result.message


def test_without_a_promise_a_repetition_is_compared_and_determinism_asked_for_is_held_to(
    judged: Callable[..., Target],
) -> None:
    found = judged(honest(), profile=PROFILE + "[bitwise]\nrepeat = false\npoison = false\n")
    names = {check.name for check in judge(with_variations(BATCHED, "repeat"), found).checks}
    assert "repeat:out.zmax" in names
    assert "repeat.bits" not in names
    asked = with_variations("attention/*deterministic*/float32/*", "repeat")
    assert asked.options["deterministic"]
    assert "repeat.bits" in {check.name for check in judge(asked, found).checks}


DROPOUT = "attention/*dropout_p=*/float32/*/onehot"


def test_dropout_is_judged_by_its_share_its_scale_and_its_seed(judged: Callable[..., Target]) -> None:
    result = judge(one(DROPOUT), judged(honest()))
    assert result.status == "PASS", result.message
    assert {"dropout.share", "seed.bits", "seed.ignored", "out.zmax"} <= {check.name for check in result.checks}


@pytest.mark.parametrize(
    ("before", "after", "bad"),
    [
        ("pass", "found.out.mul_(1 - request.dropout_p)", "out.zmax"),  # kept ones not scaled up
        ("torch.manual_seed(0)", "pass", "seed.ignored"),
        ("torch.seed()", "pass", "seed.bits"),
        ("pass", "found.out[..., ::3] = 0", "dropout.share"),
    ],
)
def test_wrong_dropout_fails(before: str, after: str, bad: str, judged: Callable[..., Target]) -> None:
    result = judge(
        one(DROPOUT), judged(honest(before, after.replace("found.out", "(found[0] if request.return_lse else found)")))
    )
    assert result.status == "FAIL", result.message
    assert bad in failed(result)
