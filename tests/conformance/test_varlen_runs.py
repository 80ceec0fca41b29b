"""varlen_attention in the suite: how a call is judged, against a plain loop over the sequences."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec
import pytest
import torch
from torch import Tensor
from xattn_conformance.case import Case
from xattn_conformance.ops.registry import OPS
from xattn_conformance.profiles.schema import parse
from xattn_conformance.result import CaseResult
from xattn_conformance.running.judge import judge
from xattn_conformance.running.target import Target

import xattn

OP = OPS["varlen_attention"]
CASES = [case for case in OP.cases() if case.dtype == "float32"]
PROFILE = parse('schema = 1\nbackend = "reference"\nhardware = ["cpu"]\n')
VARIATIONS = ("repeat", "batch", "order", "strides", "padding")

Spoil = Callable[[Mapping[str, Any], Tensor, Tensor], tuple[Tensor, Tensor]]


def loop(spoil: Spoil = lambda given, out, lse: (out, lse)) -> Any:
    """An executor that calls attention for every sequence by itself; `spoil` gets the arguments, out and lse."""

    def execute(op: str, given: Mapping[str, Any], backend: str) -> Any:
        q, k, v, at_q = given["q"], given["k"], given["v"], given["cu_seqlens_q"].tolist()
        at_k = given.get("cu_seqlens_k", given["cu_seqlens_q"]).tolist()
        out = q.new_zeros(*q.shape[:2], v.shape[2])
        lse = torch.full((q.shape[1], q.shape[0]), float("-inf"))
        names = ("causal", "window", "align", "scale", "softcap", "sinks", "alibi_slopes", "deterministic")
        shared = {name: given[name] for name in names if name in given}
        for b in range(len(at_q) - 1):
            own = dict(shared)
            if isinstance(own["align"], Tensor):
                own["align"] = int(own["align"][b])
            if own.get("alibi_slopes") is not None and own["alibi_slopes"].ndim == 2:
                own["alibi_slopes"] = own["alibi_slopes"][b]
            rows, keys = slice(at_q[b], at_q[b + 1]), slice(at_k[b], at_k[b + 1])
            found = xattn.attention(
                q[None, rows], k[None, keys], v[None, keys], **own, return_lse=True, backend="reference"
            )
            out[rows], lse[:, rows] = found.out[0], found.lse[0]
        out, lse = spoil(given, out, lse)
        return xattn.AttentionOutput(out, lse) if given["return_lse"] else out

    return execute


def judged(case: Case, execute: Any) -> CaseResult:
    return judge(case, Target("reference", "cpu", "cpu", PROFILE, execute, "hardware"))


def failed(result: CaseResult) -> set[str]:
    return {check.name for check in result.checks if not check.ok}


def public(op: str, given: Mapping[str, Any], backend: str) -> Any:
    return getattr(xattn, op)(**given, backend=backend)


@pytest.mark.parametrize("execute", [loop(), public], ids=["loop", "reference"])
@pytest.mark.parametrize("case", CASES[::6], ids=lambda case: case.id)
def test_what_is_right_passes(case: Case, execute: Any) -> None:
    result = judged(case, execute)
    assert result.status == "PASS", result.message + result.detail


PADDED = next(case for case in CASES if case.family == "normal" and {"padding", "return_lse"} <= set(case.options))


def of_longer(given: Mapping[str, Any], out: Tensor, lse: Tensor) -> tuple[Tensor, Tensor]:
    """Right in the call of the case, and not where the first sequence is another."""
    return out * (1.001 if given["cu_seqlens_q"][1] != 11 else 1), lse


SPOILT: dict[str, tuple[Spoil, set[str]]] = {
    "writes padding": (lambda given, out, lse: (_padded(given, out), lse), {"out.exact"}),
    "nan in padding": (lambda given, out, lse: (_padded(given, out, float("nan")), lse), {"out.finite", "out.exact"}),
    "lse of padding": (lambda given, out, lse: (out, lse.nan_to_num(neginf=0.0)), {"lse.finite", "lse.exact"}),
    "lse by token": (lambda given, out, lse: (out, lse.T.contiguous()), {"lse.shape"}),
    "neighbours": (of_longer, {"order:out.gain"}),
    "by head": (lambda given, out, lse: (out.transpose(0, 1).contiguous().transpose(0, 1), lse), {"out.contiguous"}),
}


def _padded(given: Mapping[str, Any], out: Tensor, value: float = 1.0) -> Tensor:
    out[int(given["cu_seqlens_q"][-1]) :] = value
    return out


@pytest.mark.parametrize("name", SPOILT)
def test_what_is_wrong_fails(name: str) -> None:
    spoil, checks = SPOILT[name]
    case = msgspec.structs.replace(PADDED, variations=("order",) if name == "neighbours" else ())
    result = judged(case, loop(spoil))
    assert result.status == "FAIL", result.message + result.detail
    assert checks <= failed(result), failed(result)


@pytest.mark.parametrize("name", VARIATIONS)
def test_variations_of_what_is_right_pass(name: str) -> None:
    result = judged(msgspec.structs.replace(PADDED, variations=(name,)), public)
    assert result.status == "PASS", result.message + result.detail
    assert any(check.name.startswith(name) for check in result.checks)


def test_knobs_are_turned() -> None:
    for knob in OP.knob_cases():
        assert judged(knob, loop()).status == "PASS"
    deaf = loop(lambda given, out, lse: (out, lse))
    (softcap,) = [knob for knob in OP.knob_cases() if knob.dtype == "float32" and knob.title == "knob.softcap"]
    result = judged(softcap, lambda op, given, backend: deaf(op, {**given, "softcap": None}, backend))
    assert "knob.ignored" in failed(result)


def test_a_run_of_a_backend_without_the_op_has_no_case_of_it() -> None:
    call = OP.call(CASES[0], OP.problem(CASES[0]), "cpu")
    (reason,) = OP.explain(call, "nki").reasons
    assert (reason.code, reason.got) == ("op", "varlen_attention")
