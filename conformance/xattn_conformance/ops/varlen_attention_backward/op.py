"""The op "varlen_attention_backward" as the suite sees it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from numpy.typing import NDArray

from xattn_conformance.array import Array
from xattn_conformance.case import DTYPES, Case, scores
from xattn_conformance.mutants.mutant import Mutant, Right
from xattn_conformance.ops.base import Layout, Op, Variation, Wanted
from xattn_conformance.ops.call import Call
from xattn_conformance.ops.memory import inside
from xattn_conformance.ops.sequences import bits, digest
from xattn_conformance.ops.varlen_attention.op import VarlenAttentionOp, tensor_of
from xattn_conformance.ops.varlen_attention.problem import joined
from xattn_conformance.ops.varlen_attention.variations import VARIATIONS
from xattn_conformance.ops.varlen_attention_backward import problem as problems
from xattn_conformance.ops.varlen_attention_backward.cases import CASES
from xattn_conformance.ops.varlen_attention_backward.mutants import NAMES, OWN, RIGHTS, inherited
from xattn_conformance.ops.varlen_attention_backward.problem import Backward
from xattn_conformance.tolerance.arithmetic import Arithmetic
from xattn_conformance.tolerance.expected import Expected

# The slow oracle, which has all sequences in one mask, sees cases of at most so many scores in there.
_SCORES_MAX = 15_000
_FORWARD = VarlenAttentionOp()


class VarlenAttentionBackwardOp(Op[Backward]):
    """`xattn.varlen_attention_backward`. Its golden is varlen_attention's gradient."""

    name = "varlen_attention_backward"

    def cases(self) -> Sequence[Case]:
        return CASES.load()

    def problem(self, case: Case) -> Backward:
        return problems.make(case)

    def inputs(self, problem: Backward) -> Mapping[str, NDArray[Any]]:
        return bits(problem.tensors)

    def digest(self, problem: Backward) -> str:
        """Of what is drawn; out and lse follow from it."""
        return digest({**problem.whole.tensors, **problem.whole.incoming})

    def expected(self, case: Case, problem: Backward, arithmetic: Arithmetic) -> Mapping[str, Expected]:
        if not problem.parts:  # padding alone
            zeros = {name: joined(problem.whole, name, [], 0.0) for name in NAMES}
            return {name: Expected(values, values) for name, values in zeros.items()}
        found = _FORWARD.expected(case, problem.whole, arithmetic)
        return {name: found[name] for name in NAMES}

    def call(self, case: Case, problem: Backward, device: str) -> Call:
        tensors = {name: tensor_of(values, kind, device) for name, (values, kind) in problem.tensors.items()}
        options = ("max_seqlen_q", "max_seqlen_k", "causal", "window", "align", "scale", "softcap", "deterministic")
        given = {name: getattr(problem.whole, name) for name in options if name not in tensors}
        return Call(op=self.name, tensors=tensors, options=given, returns=NAMES)

    def layout(self, name: str, tensor: torch.Tensor) -> Array:
        return _FORWARD.layout(name, tensor)

    def results(self, call: Call) -> Mapping[str, Layout]:
        return {name: Layout(tuple(call.tensors[name[1:]].shape), call.tensors[name[1:]].dtype) for name in NAMES}

    def wanted(self, case: Case) -> Wanted:
        size = case.shape
        columns: dict[str, int | None] = {"dq": size["headdim"], "dk": size["headdim"], "dv": size["headdim_v"]}
        return Wanted(columns=columns, contiguous=(), per_row=NAMES)

    def vary(self, name: str, case: Case, problem: Backward, call: Call, device: str) -> Variation:
        if name == "poison":
            other = self.call(case, problems.poisoned(problem, 0.0), device)
            return Variation("with other values where no query may look", (other,), lambda found: dict(found[0]))
        if name in ("batch", "order"):
            return VARIATIONS[name](call)
        tensors = {key: inside(tensor) for key, tensor in call.tensors.items()}
        said = "with the same values in another memory layout"
        return Variation(said, (replace(call, tensors=tensors),), lambda found: dict(found[0]))

    def mutants(self) -> Sequence[Mutant]:
        return _mutants()

    def right_kernels(self) -> Sequence[Right]:
        return RIGHTS

    def proved(self) -> Sequence[Case]:
        one = [case for case in self.cases() if case.dtype == DTYPES[case.seed % len(DTYPES)]]
        return [case for case in one if scores(case) * case.shape["batch"] <= _SCORES_MAX]

    def disagreement(self, problem: Backward) -> str:
        return _FORWARD.disagreement(problem.whole)


@cache
def _mutants() -> tuple[Mutant, ...]:
    return (*OWN, *inherited(tuple(_FORWARD.mutants())))
