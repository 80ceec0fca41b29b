"""The op "merge_attention" as the suite sees it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from xattn_conformance.array import Array
from xattn_conformance.case import DTYPES, Case
from xattn_conformance.mutants.mutant import Mutant, Right
from xattn_conformance.ops.base import Layout, Op, Variation, Wanted
from xattn_conformance.ops.call import Call
from xattn_conformance.ops.merge_attention import cases, noise, oracle
from xattn_conformance.ops.merge_attention import problem as problems
from xattn_conformance.ops.merge_attention.mutants.zoo import MUTANTS, RIGHT
from xattn_conformance.ops.merge_attention.problem import Merge
from xattn_conformance.ops.merge_attention.variations import VARIATIONS
from xattn_conformance.tolerance.arithmetic import Arithmetic
from xattn_conformance.tolerance.expected import Expected

# Cases of more elements are left to the runs.
_ELEMENTS_MAX = 10_000


class MergeOp(Op[Merge]):
    """`xattn.merge_attention`. Its tensors are "outs0", "lses0", "outs1", ..., one of each for a part."""

    name = "merge_attention"

    def cases(self) -> Sequence[Case]:
        return cases.load()

    def problem(self, case: Case) -> Merge:
        return problems.make(case)

    def inputs(self, problem: Merge) -> Mapping[str, NDArray[Any]]:
        return problems.bits(problem)

    def expected(self, case: Case, problem: Merge, arithmetic: Arithmetic) -> Mapping[str, Expected]:
        return noise.expected(problem, arithmetic)

    def call(self, case: Case, problem: Merge, device: str) -> Call:
        def tensor(values: Array, name: str) -> torch.Tensor:
            single = np.ascontiguousarray(values[0] if problem.packed else values, np.float32)
            return torch.from_numpy(single).to(device=device, dtype=getattr(torch, problem.format(name)))

        parts = range(problem.parts)
        tensors = {f"outs{i}": tensor(problem.outs[i], "outs") for i in parts}
        tensors |= {f"lses{i}": tensor(problem.lses[i], "lses") for i in parts}
        incoming = {"out": ("dout", problem.dout), "lse": ("dlse", problem.dlse)}
        return Call(
            op=self.name,
            tensors=tensors,
            options={},
            wanted=tuple(tensors) if case.grads else (),
            incoming={name: tensor(values, kind) for name, (kind, values) in incoming.items() if values is not None},
            lists={name: tuple(f"{name}{i}" for i in parts) for name in ("outs", "lses")},
        )

    def layout(self, name: str, tensor: torch.Tensor) -> Array:
        values: Array = tensor.detach().cpu().double().numpy()
        if "lse" in name:
            return (values if values.ndim == 3 else values[None])[..., None]
        return noise.as_heads(values if values.ndim == 4 else values[None])

    def digest(self, problem: Merge) -> str:
        return problems.digest(problem)

    def results(self, call: Call) -> Mapping[str, Layout]:
        out, lse = call.tensors["outs0"], call.tensors["lses0"]
        found = {
            "out": Layout(tuple(out.shape), out.dtype, contiguous=True),
            "lse": Layout(tuple(lse.shape), lse.dtype),
        }
        for name in call.wanted:
            found[f"d{name}"] = Layout(tuple(call.tensors[name].shape), call.tensors[name].dtype)
        return found

    def wanted(self, case: Case) -> Wanted:
        parts, headdim = range(case.options["parts"]), case.shape["headdim"]
        columns: dict[str, int | None] = {"out": headdim, "lse": 1}
        if case.grads:
            columns |= {f"douts{i}": headdim for i in parts} | {f"dlses{i}": 1 for i in parts}
        return Wanted(columns=columns, contiguous=("out",), per_row=tuple(columns))

    def vary(self, name: str, case: Case, problem: Merge, call: Call, device: str) -> Variation:
        return VARIATIONS[name](call)

    def mutants(self) -> Sequence[Mutant]:
        return MUTANTS

    def right_kernels(self) -> Sequence[Right]:
        return RIGHT

    def proved(self) -> Sequence[Case]:
        return [
            case
            for case in self.cases()
            if case.dtype == DTYPES[case.seed % len(DTYPES)] and _elements(case) <= _ELEMENTS_MAX
        ]

    def disagreement(self, problem: Merge) -> str:
        one = oracle.merge(problem.outs, problem.lses)
        out, lse = oracle.by_twos(problem.outs, problem.lses)
        close = all(
            np.allclose(first, second, rtol=1e-12, atol=1e-12, equal_nan=True)
            for first, second in ((one.out, out), (one.lse, lse))
        )
        return "" if close else "the two oracles differ"


def _elements(case: Case) -> int:
    size = case.shape
    return case.options["parts"] * size["batch"] * size["seqlen_q"] * size["nheads"] * size["headdim"]  # type: ignore[no-any-return]
