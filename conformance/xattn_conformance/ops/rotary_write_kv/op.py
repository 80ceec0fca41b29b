"""The op "rotary_write_kv" as the suite sees it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from xattn_conformance.array import Array
from xattn_conformance.case import DTYPES, Case
from xattn_conformance.inputs.quantised import WRITTEN
from xattn_conformance.mutants.mutant import Mutant, Right
from xattn_conformance.ops.base import Layout, Op, Variation, Wanted
from xattn_conformance.ops.call import Call
from xattn_conformance.ops.memory import inside
from xattn_conformance.ops.rotary_write_kv import cases
from xattn_conformance.ops.rotary_write_kv import problem as problems
from xattn_conformance.ops.rotary_write_kv.mutants import MUTANTS, RIGHTS
from xattn_conformance.ops.rotary_write_kv.problem import SCALES, RotaryWrite
from xattn_conformance.ops.sequences import bits, digest
from xattn_conformance.ops.tensors import tensor_of
from xattn_conformance.tolerance.arithmetic import Arithmetic
from xattn_conformance.tolerance.expected import Expected

# The tensors that have a row for each token.
_OF_TOKENS = ("q", "k", "v", "cos", "sin", "slots")


class RotaryWriteOp(Op[RotaryWrite]):
    """`xattn.rotary_write_kv`. Its results are "out", the queries, and the caches after the call."""

    name = "rotary_write_kv"

    def cases(self) -> Sequence[Case]:
        return cases.load()

    def problem(self, case: Case) -> RotaryWrite:
        return problems.make(case)

    def inputs(self, problem: RotaryWrite) -> Mapping[str, NDArray[Any]]:
        return bits(problem.tensors)

    def digest(self, problem: RotaryWrite) -> str:
        return digest(problem.tensors)

    def expected(self, case: Case, problem: RotaryWrite, arithmetic: Arithmetic) -> Mapping[str, Expected]:
        # The contract says where a rotation rounds: no profile can declare it otherwise.
        return problems.results(problem, problem.turned(problem.q), problem.turned(problem.k), problem.v)

    def call(self, case: Case, problem: RotaryWrite, device: str) -> Call:
        tensors = {name: tensor_of(values, kind, device) for name, (values, kind) in problem.tensors.items()}
        options: dict[str, Any] = {"interleaved": problem.interleaved}
        if problem.v is None:
            options |= {"v": None, "v_cache": None}
        caches = tuple(name for name in ("k_cache", "v_cache") if name in tensors)
        scales = tuple(name for name, scale in problem.scales.items() if scale.ndim == 3)
        return Call(op=self.name, tensors=tensors, options=options, returns=("out",), writes=caches + scales)

    def layout(self, name: str, tensor: torch.Tensor) -> Array:
        values: Array = tensor.detach().cpu().double().numpy()
        if name == "around":
            return values[None, None, None]
        if name in SCALES:
            values = values[..., None]
        return np.swapaxes(values[None] if name == "out" else values, 1, 2)

    def results(self, call: Call) -> Mapping[str, Layout]:
        q, stored = call.tensors["q"], call.tensors["k_cache"].dtype
        written = {name: Layout(tuple(call.tensors[name].shape), call.tensors[name].dtype) for name in call.writes}
        return {"out": Layout(tuple(q.shape), q.dtype, contiguous=True), **written, "around": Layout((0,), stored)}

    def wanted(self, case: Case) -> Wanted:
        columns: dict[str, int | None] = {
            "out": case.options.get("queries", case.shape["headdim"]),
            "k_cache": case.shape["headdim"],
        }
        if not case.options.get("latent"):
            columns["v_cache"] = case.shape["headdim_v"]
        if case.options.get("scale_of") in WRITTEN:
            columns |= dict.fromkeys(SCALES, 1)
        columns["around"] = None
        return Wanted(columns=columns, contiguous=("out",), per_row=())

    def vary(self, name: str, case: Case, problem: RotaryWrite, call: Call, device: str) -> Variation:
        given = call.tensors
        if name == "order":
            turned = {each: given[each].flip(0) for each in _OF_TOKENS if each in given}
            other = replace(call, tensors={**given, **turned})
            back = lambda found: {**found[0], "out": found[0]["out"].flip(0)}  # noqa: E731
            return Variation("with the tokens in another order", (other,), back)
        tensors = {each: inside(x) if each in _OF_TOKENS else x for each, x in given.items()}
        other = replace(call, tensors=tensors)
        return Variation("with the new tokens in other memory", (other,), lambda found: dict(found[0]))

    def mutants(self) -> Sequence[Mutant]:
        return MUTANTS

    def right_kernels(self) -> Sequence[Right]:
        return RIGHTS

    def proved(self) -> Sequence[Case]:
        small = [case for case in self.cases() if case.level == "core"]
        return [case for case in small if case.dtype == DTYPES[case.seed % len(DTYPES)]]

    def disagreement(self, problem: RotaryWrite) -> str:
        """All tokens at once, and one after the other, by a complex product; both are rounded to the dtype."""
        (right,) = RIGHTS
        wide = replace(problem, dtype="float32")
        golden = self.expected(self.cases()[0], wide, Arithmetic())
        found = right.run(wide)
        wrong = [name for name, one in golden.items() if not np.allclose(one.value, found[name], rtol=1e-6, atol=1e-6)]
        return f"by the other oracle, {wrong[0]} is another" if wrong else ""
