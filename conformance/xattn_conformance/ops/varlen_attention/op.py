"""The op "varlen_attention" as the suite sees it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from xattn_conformance.array import Array
from xattn_conformance.case import DTYPES, Case, scores
from xattn_conformance.mutants.mutant import Mutant
from xattn_conformance.ops.attention_like import FILLS, AttentionLikeOp, Problem, filling, slow_answer
from xattn_conformance.ops.base import Layout, Switch, Variation, Wanted
from xattn_conformance.ops.call import Call
from xattn_conformance.ops.sequences import bits, digest
from xattn_conformance.ops.varlen_attention import problem as problems
from xattn_conformance.ops.varlen_attention.backwards import BACKWARDS
from xattn_conformance.ops.varlen_attention.cases import CASES
from xattn_conformance.ops.varlen_attention.mutants import MUTANTS
from xattn_conformance.ops.varlen_attention.packed import one_call
from xattn_conformance.ops.varlen_attention.problem import Varlen
from xattn_conformance.ops.varlen_attention.variations import VARIATIONS
from xattn_conformance.tolerance.arithmetic import Arithmetic

# The slow oracle, which has all sequences in one mask, sees cases of at most so many scores in there.
_SCORES_MAX = 15_000


class VarlenAttentionOp(AttentionLikeOp[Varlen]):
    """`xattn.varlen_attention`."""

    name = "varlen_attention"
    differentiable = True

    def cases(self) -> Sequence[Case]:
        return CASES.load()

    def problem(self, case: Case) -> Varlen:
        return problems.make(case)

    def inputs(self, problem: Varlen) -> Mapping[str, NDArray[Any]]:
        return bits({**problem.tensors, **problem.incoming})

    def digest(self, problem: Varlen) -> str:
        return digest({**problem.tensors, **problem.incoming})

    def sequences(self, problem: Varlen) -> list[Problem]:
        return problems.sequences(problem)

    def joined(self, problem: Varlen, name: str, parts: Sequence[Array], nobodys: float) -> Array:
        return problems.joined(problem, name, parts, nobodys)

    def grads(self, problem: Varlen) -> tuple[str, ...]:
        return problem.grads

    def returns_lse(self, problem: Varlen) -> bool:
        return problem.return_lse

    def own_mutants(self) -> Sequence[Mutant]:
        return (*MUTANTS, *BACKWARDS)

    def impostors(self) -> Sequence[Any]:
        # They judge cases, and judging knows the ops.
        from xattn_conformance.ops.varlen_attention.impostors import IMPOSTORS

        return IMPOSTORS

    def call(self, case: Case, problem: Varlen, device: str) -> Call:
        tensors = {name: tensor_of(values, kind, device) for name, (values, kind) in problem.tensors.items()}
        options = ("max_seqlen_q", "max_seqlen_k", "causal", "window", "align", "scale", "softcap", "deterministic")
        given = {name: getattr(problem, name) for name in (*options, "return_lse") if name not in tensors}
        incoming = {name[1:]: tensor_of(values, kind, device) for name, (values, kind) in problem.incoming.items()}
        if case.family == "through_lse":
            del incoming["out"]
        return Call(op=self.name, tensors=tensors, options=given, wanted=problem.grads, incoming=incoming)

    def layout(self, name: str, tensor: torch.Tensor) -> Array:
        values: Array = tensor.detach().cpu().double().numpy()
        if name == "dsinks":
            return values.reshape(1, -1, 1, 1)
        return values[None, ..., None] if name == "lse" else np.transpose(values, (1, 0, 2))[None]

    def results(self, call: Call) -> Mapping[str, Layout]:
        q, v = call.tensors["q"], call.tensors["v"]
        found = {"out": Layout((*q.shape[:2], v.shape[2]), q.dtype, contiguous=True)}
        if call.options["return_lse"]:
            found["lse"] = Layout((q.shape[1], q.shape[0]), torch.float32)
        for name in call.wanted:
            found[f"d{name}"] = Layout(tuple(call.tensors[name].shape), call.tensors[name].dtype)
        return found

    def wanted(self, case: Case) -> Wanted:
        headdim, headdim_v = case.shape["headdim"], case.shape["headdim_v"]
        columns: dict[str, int | None] = {"out": headdim_v}
        if case.options.get("return_lse"):
            columns["lse"] = 1
        if "qkv" in case.grads:
            columns |= {"dq": headdim, "dk": headdim, "dv": headdim_v}
        if "sinks" in case.grads:
            columns["dsinks"] = 1
        # Every sequence adds to the gradient of the sinks.
        per_row = ("out", "lse", "dq", "dk", "dv")
        return Wanted(columns=columns, contiguous=("out",), per_row=per_row, apart=("batch", "order"))

    def vary(self, name: str, case: Case, problem: Varlen, call: Call, device: str) -> Variation:
        if name in FILLS:
            other = self.call(case, problems.poisoned(problem, filling(name, problem.dtype)), device)
            return Variation("with other values where no query may look", (other,), lambda found: dict(found[0]))
        return VARIATIONS[name](call)

    def proved(self) -> Sequence[Case]:
        one = [case for case in self.cases() if case.dtype == DTYPES[case.seed % len(DTYPES)]]
        return [case for case in one if scores(case) * case.shape["batch"] <= _SCORES_MAX]

    def disagreement(self, problem: Varlen) -> str:
        """The sequences one by one, by the goldens' own oracle, and all of them in one masked call, by the other."""
        whole = slow_answer(one_call(problem))
        golden = self.expected(self.cases()[0], replace(problem, return_lse=True), Arithmetic())
        for name, one in golden.items():
            used = slice(None)
            if name != "dsinks":
                used = slice(problem.rows_of(name)[-1].stop if problem.rows else 0)
            got, want = (x[:, :, used] for x in (whole[name], one.value))
            if not np.allclose(got, want, rtol=1e-12, atol=1e-12 if name in ("out", "lse") else 1e-10):
                return f"by the other oracle, {name} is another"
        return ""

    def knob_cases(self) -> Sequence[Case]:
        return [knob.on for knob in CASES.knobs()]

    def switch(self, case: Case, problem: Varlen, arithmetic: Arithmetic, device: str) -> Switch:
        (knob,) = [each for each in CASES.knobs() if each.on.id == case.id]
        without = replace(problem, **knob.off)
        return Switch(
            on=self.call(case, problem, device),
            off=self.call(case, without, device),
            expected_on=self.expected(case, problem, arithmetic),
            expected_off=self.expected(case, without, arithmetic),
        )


def tensor_of(values: NDArray[Any], dtype: str, device: str) -> torch.Tensor:
    """Exact: the values are representable in the dtype, and float32 holds those of every narrower one."""
    if values.dtype == np.float64:
        values = values.astype(np.float32)
    return torch.from_numpy(np.ascontiguousarray(values)).to(device=device, dtype=getattr(torch, dtype))
