"""The op "apply_rotary" as the suite sees it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from xattn_conformance.array import Array
from xattn_conformance.case import DTYPES, Case
from xattn_conformance.mutants.mutant import Mutant, Right
from xattn_conformance.ops import rotation
from xattn_conformance.ops.apply_rotary import cases, noise
from xattn_conformance.ops.apply_rotary import problem as problems
from xattn_conformance.ops.apply_rotary.mutants.zoo import MUTANTS, RIGHT
from xattn_conformance.ops.apply_rotary.problem import Rotary
from xattn_conformance.ops.apply_rotary.variations import VARIATIONS
from xattn_conformance.ops.base import Layout, Op, Switch, Variation, Wanted
from xattn_conformance.ops.call import Call
from xattn_conformance.tolerance.arithmetic import Arithmetic
from xattn_conformance.tolerance.expected import Expected

# Cases of more elements are left to the runs.
_ELEMENTS_MAX = 10_000


class RotaryOp(Op[Rotary]):
    """`xattn.apply_rotary`. Its results are "out", q rotated, and "out_k"."""

    name = "apply_rotary"

    def cases(self) -> Sequence[Case]:
        return cases.load()

    def problem(self, case: Case) -> Rotary:
        return problems.make(case)

    def inputs(self, problem: Rotary) -> Mapping[str, NDArray[Any]]:
        return problems.bits(problem)

    def expected(self, case: Case, problem: Rotary, arithmetic: Arithmetic) -> Mapping[str, Expected]:
        # The contract says where a rotation rounds: no profile can declare it otherwise.
        return noise.expected(problem)

    def call(self, case: Case, problem: Rotary, device: str) -> Call:
        tensors = {name: _tensor(values, problem.format(name), device) for name, values in problem.tensors.items()}
        incoming = {
            name: tensors.pop(given) for name, given in (("out", "dout"), ("out_k", "dout_k")) if given in tensors
        }
        return Call(
            op=self.name,
            tensors=tensors,
            options={"interleaved": problem.interleaved, **({"k": None} if problem.k is None else {})},
            wanted=case.grads,
            incoming=incoming,
            returns=("out", None if problem.k is None else "out_k"),
        )

    def layout(self, name: str, tensor: torch.Tensor) -> Array:
        return noise.as_heads(tensor.detach().cpu().double().numpy())

    def digest(self, problem: Rotary) -> str:
        return problems.digest(problem)

    def results(self, call: Call) -> Mapping[str, Layout]:
        q = call.tensors["q"]
        found = {"out": Layout(tuple(q.shape), q.dtype, contiguous=True)}
        if "k" in call.tensors:
            found["out_k"] = Layout(tuple(call.tensors["k"].shape), q.dtype, contiguous=True)
        for name in call.wanted:
            found[f"d{name}"] = Layout(tuple(call.tensors[name].shape), q.dtype)
        return found

    def wanted(self, case: Case) -> Wanted:
        returned = ("out",) if case.options.get("alone") else ("out", "out_k")
        names = (*returned, *(f"d{name}" for name in case.grads))
        return Wanted(columns=dict.fromkeys(names, case.shape["headdim"]), contiguous=returned, per_row=names)

    def words(self, case: Case) -> frozenset[str]:
        named = {"rotary_dim": "partial", "grad_q": "grad_qk", "grad_k": "grad_qk"}
        return frozenset(named.get(word, word) for word in super().words(case))

    def vary(self, name: str, case: Case, problem: Rotary, call: Call, device: str) -> Variation:
        return VARIATIONS[name](call)

    def mutants(self) -> Sequence[Mutant]:
        return MUTANTS

    def right_kernels(self) -> Sequence[Right]:
        return RIGHT

    def proved(self) -> Sequence[Case]:
        return [
            case
            for case in (*self.cases(), *self.knob_cases())
            if case.dtype == DTYPES[case.seed % len(DTYPES)] and _elements(case) <= _ELEMENTS_MAX
        ]

    def disagreement(self, problem: Rotary) -> str:
        ways = rotation.rotated, rotation.as_complex
        one, other = (way(problem.q, problem.cos, problem.sin, problem.interleaved) for way in ways)
        close = np.allclose(one, other, rtol=1e-12, atol=1e-12 * np.abs(one).max(initial=0.0))
        return "" if close else "the two oracles differ"

    def knob_cases(self) -> Sequence[Case]:
        return cases.knobs()

    def switch(self, case: Case, problem: Rotary, arithmetic: Arithmetic, device: str) -> Switch:
        without = replace(problem, interleaved=False)
        return Switch(
            on=self.call(case, problem, device),
            off=self.call(case, without, device),
            expected_on=self.expected(case, problem, arithmetic),
            expected_off=self.expected(case, without, arithmetic),
        )


def _elements(case: Case) -> int:
    size = case.shape
    return size["batch"] * size["seqlen_q"] * size["nheads"] * size["headdim"]


def _tensor(values: Array, dtype: str, device: str) -> torch.Tensor:
    """Exact: the values are representable in the dtype, and float32 holds those of every narrower one."""
    single = np.ascontiguousarray(values, np.float32)
    return torch.from_numpy(single).to(device=device, dtype=getattr(torch, dtype))
