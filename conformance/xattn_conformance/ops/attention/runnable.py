"""The op "attention" as the runner sees it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

import xattn
from xattn_conformance.case import Case
from xattn_conformance.ops.attention import cases, dropout, variations
from xattn_conformance.ops.attention import problem as problems
from xattn_conformance.ops.attention.op import AttentionOp
from xattn_conformance.ops.call import Call
from xattn_conformance.ops.runnable import Answer, Layout, RunnableOp, Switch, Variation
from xattn_conformance.problem import Array, Problem
from xattn_conformance.result import Check
from xattn_conformance.tolerance.arithmetic import Arithmetic
from xattn_conformance.tolerance.expected import Expected


class RunnableAttention(AttentionOp, RunnableOp[Problem]):
    """`xattn.attention`."""

    def digest(self, problem: Problem) -> str:
        return problems.digest(problem)

    def explain(self, call: Call, backend: str) -> Answer:
        explanation = xattn.explain(**call.arguments, backend=backend)
        (candidate,) = [each for each in explanation.candidates if each.name == backend]
        return Answer(explanation.request, candidate.reasons, candidate.kernel)

    def results(self, call: Call) -> Mapping[str, Layout]:
        q, v = call.tensors["q"], call.tensors["v"]
        batch, seqlen_q, nheads, _ = q.shape
        found = {"out": Layout((batch, seqlen_q, nheads, v.shape[3]), q.dtype, contiguous=True)}
        if call.options["return_lse"]:
            found["lse"] = Layout((batch, nheads, seqlen_q), torch.float32)
        for name in call.wanted:
            found[f"d{name}"] = Layout(tuple(call.tensors[name].shape), call.tensors[name].dtype)
        return found

    def vary(self, name: str, case: Case, problem: Problem, call: Call, device: str) -> Variation:
        if name == "poison":
            return variations.other_inputs(self.call(case, problems.poisoned_with(problem, 0.0), device))
        return variations.VARIATIONS[name](call)

    def knob_cases(self) -> Sequence[Case]:
        return [knob.on for knob in cases.knobs()]

    def switch(self, case: Case, problem: Problem, arithmetic: Arithmetic, device: str) -> Switch:
        (knob,) = [each for each in cases.knobs() if each.on.id == case.id]
        without = replace(problem, **knob.off)
        expected = self.expected(case, without, arithmetic)
        return Switch(self.call(case, problem, device), self.call(case, without, device), expected)

    def by_chance(self, case: Case) -> bool:
        return bool(case.options.get("dropout_p"))

    def without_chance(
        self, case: Case, expected: Mapping[str, Expected], got: Mapping[str, Array]
    ) -> tuple[dict[str, Array], tuple[Check, ...]]:
        return dropout.undropped(case.options["dropout_p"], expected, got)
