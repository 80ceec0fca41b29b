"""The op "apply_rotary" as the suite sees it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import xattn
from xattn import Backend
from xattn_conformance.case import Case
from xattn_conformance.ops.base import Answer, Layout, Op, Switch, Variation, Wanted
from xattn_conformance.ops.call import Call
from xattn_conformance.ops.rotary import cases
from xattn_conformance.ops.rotary import problem as problems
from xattn_conformance.ops.rotary.problem import Rotary
from xattn_conformance.ops.rotary.variations import VARIATIONS
from xattn_conformance.problem import Array
from xattn_conformance.tolerance import rotary as tolerance
from xattn_conformance.tolerance.arithmetic import Arithmetic
from xattn_conformance.tolerance.expected import Expected


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
        return tolerance.expected(problem)

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
        return np.transpose(tensor.detach().cpu().double().numpy(), (0, 2, 1, 3))

    def digest(self, problem: Rotary) -> str:
        return problems.digest(problem)

    def explain(self, call: Call, backend: str) -> Answer:
        given = {"k": None, **call.arguments}
        explanation = xattn.explain(xattn.apply_rotary, **given, backend=backend)
        (candidate,) = [each for each in explanation.candidates if each.name == backend]
        return Answer(explanation.request, candidate.reasons, candidate.kernel)

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

    def served_by(self, backend: Backend) -> bool:
        return any(kernel.op == self.name for kernel in backend.kernels)

    def vary(self, name: str, case: Case, problem: Rotary, call: Call, device: str) -> Variation:
        return VARIATIONS[name](call)

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


def _tensor(values: Array, dtype: str, device: str) -> torch.Tensor:
    """Exact: the values are representable in the dtype, and float32 holds those of every narrower one."""
    single = np.ascontiguousarray(values, np.float32)
    return torch.from_numpy(single).to(device=device, dtype=getattr(torch, dtype))
