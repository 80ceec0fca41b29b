"""The op "hstu_attention" as the suite sees it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from xattn_conformance.array import Array
from xattn_conformance.case import DTYPES, Case, scores
from xattn_conformance.mutants.mutant import Mutant, Right
from xattn_conformance.ops.base import Layout, Op, Switch, Variation, Wanted
from xattn_conformance.ops.call import Call
from xattn_conformance.ops.hstu_attention import noise, oracle
from xattn_conformance.ops.hstu_attention import problem as problems
from xattn_conformance.ops.hstu_attention.cases import CASES
from xattn_conformance.ops.hstu_attention.mutants.zoo import MUTANTS, RIGHT
from xattn_conformance.ops.hstu_attention.problem import Hstu
from xattn_conformance.ops.hstu_attention.variations import VARIATIONS
from xattn_conformance.ops.sequences import bits, digest
from xattn_conformance.ops.tensors import tensor_of
from xattn_conformance.tolerance.arithmetic import Arithmetic
from xattn_conformance.tolerance.expected import Expected

# The slow oracle looks at every pair of tokens: it sees cases of at most so many.
_SCORES_MAX = 40_000
_OPTIONS = ("norm", "scale", "causal", "max_attn_len", "contextual_seqlen", "max_seqlen", "deterministic")


class HstuOp(Op[Hstu]):
    """`xattn.hstu_attention`."""

    name = "hstu_attention"

    def cases(self) -> Sequence[Case]:
        return CASES.load()

    def problem(self, case: Case) -> Hstu:
        return problems.make(case)

    def inputs(self, problem: Hstu) -> Mapping[str, NDArray[Any]]:
        return bits({**problem.tensors, **problem.incoming})

    def digest(self, problem: Hstu) -> str:
        return digest({**problem.tensors, **problem.incoming})

    def expected(self, case: Case, problem: Hstu, arithmetic: Arithmetic) -> Mapping[str, Expected]:
        return noise.expected(problem, arithmetic)

    def call(self, case: Case, problem: Hstu, device: str) -> Call:
        tensors = {name: tensor_of(values, kind, device) for name, (values, kind) in problem.tensors.items()}
        incoming = {name[1:]: tensor_of(values, kind, device) for name, (values, kind) in problem.incoming.items()}
        return Call(
            op=self.name,
            tensors=tensors,
            options={name: getattr(problem, name) for name in _OPTIONS},
            wanted=("q", "k", "v") if problem.dout is not None else (),
            incoming=incoming,
        )

    def layout(self, name: str, tensor: torch.Tensor) -> Array:
        values: Array = tensor.detach().cpu().double().numpy()
        return np.swapaxes(values, 0, 1)[None]

    def results(self, call: Call) -> Mapping[str, Layout]:
        q, v = call.tensors["q"], call.tensors["v"]
        found = {"out": Layout((*q.shape[:2], v.shape[2]), q.dtype, contiguous=True)}
        for name in call.wanted:
            found[f"d{name}"] = Layout(tuple(call.tensors[name].shape), call.tensors[name].dtype)
        return found

    def wanted(self, case: Case) -> Wanted:
        headdim, headdim_v = case.shape["headdim"], case.shape["headdim_v"]
        columns: dict[str, int | None] = {"out": headdim_v}
        if case.grads:
            columns |= {"dq": headdim, "dk": headdim, "dv": headdim_v}
        return Wanted(columns=columns, contiguous=("out",), per_row=tuple(columns), apart=("batch", "order"))

    def vary(self, name: str, case: Case, problem: Hstu, call: Call, device: str) -> Variation:
        return VARIATIONS[name](call)

    def mutants(self) -> Sequence[Mutant]:
        return MUTANTS

    def right_kernels(self) -> Sequence[Right]:
        return RIGHT

    def proved(self) -> Sequence[Case]:
        one = [case for case in self.cases() if case.dtype == DTYPES[case.seed % len(DTYPES)]]
        return [case for case in one if scores(case) <= _SCORES_MAX]

    def disagreement(self, problem: Hstu) -> str:
        """Head by head, by places, and all tokens in one call, by their kinds."""
        whole = oracle.in_one_call(problem)
        for name, golden in noise.expected(problem, Arithmetic()).items():
            if not np.allclose(np.swapaxes(whole[name], 0, 1)[None], golden.value, rtol=1e-11, atol=1e-12):
                return f"by the other oracle, {name} is another"
        return ""

    def knob_cases(self) -> Sequence[Case]:
        return [knob.on for knob in CASES.knobs()]

    def switch(self, case: Case, problem: Hstu, arithmetic: Arithmetic, device: str) -> Switch:
        (knob,) = [each for each in CASES.knobs() if each.on.id == case.id]
        without = replace(problem, **knob.off)
        return Switch(
            on=self.call(case, problem, device),
            off=self.call(case, without, device),
            expected_on=self.expected(case, problem, arithmetic),
            expected_off=self.expected(case, without, arithmetic),
        )
