"""The op "mqa_logits" as the suite sees it."""

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
from xattn_conformance.ops import logits
from xattn_conformance.ops.attention_like import at_the_end, off_alignment
from xattn_conformance.ops.base import Layout, Op, Tensors, Variation, Wanted
from xattn_conformance.ops.call import Call
from xattn_conformance.ops.memory import inside
from xattn_conformance.ops.mqa_logits import problem as problems
from xattn_conformance.ops.mqa_logits.cases import CASES
from xattn_conformance.ops.mqa_logits.mutants import MUTANTS, RIGHT
from xattn_conformance.ops.mqa_logits.problem import MqaLogits
from xattn_conformance.ops.sequences import bits, digest
from xattn_conformance.ops.tensors import tensor_of
from xattn_conformance.tolerance.arithmetic import Arithmetic
from xattn_conformance.tolerance.expected import Expected

# The slow oracle goes key by key: it sees cases of at most so many scores.
_SCORES_MAX = 30_000
# Rows that are called together.
_ROWS = 8


class MqaLogitsOp(Op[MqaLogits]):
    """`xattn.mqa_logits`."""

    name = "mqa_logits"

    def cases(self) -> Sequence[Case]:
        return CASES.load()

    def problem(self, case: Case) -> MqaLogits:
        return problems.make(case)

    def inputs(self, problem: MqaLogits) -> Mapping[str, NDArray[Any]]:
        return bits(problem.tensors)

    def digest(self, problem: MqaLogits) -> str:
        return digest(problem.tensors)

    def expected(self, case: Case, problem: MqaLogits, arithmetic: Arithmetic) -> Mapping[str, Expected]:
        return logits.expected(problem.logits, arithmetic)

    def call(self, case: Case, problem: MqaLogits, device: str) -> Call:
        tensors = {name: tensor_of(values, kind, device) for name, (values, kind) in problem.tensors.items()}
        return Call(op=self.name, tensors=tensors, options={})

    def layout(self, name: str, tensor: torch.Tensor) -> Array:
        values: Array = tensor.detach().cpu().double().numpy()
        return values[None, None]

    def results(self, call: Call) -> Mapping[str, Layout]:
        shape = (call.tensors["q"].shape[0], call.tensors["k"].shape[0])
        return {"out": Layout(shape, torch.float32, contiguous=True)}

    def wanted(self, case: Case) -> Wanted:
        return Wanted(columns={"out": case.shape["seqlen_k"]}, contiguous=("out",), per_row=("out",), apart=("rows",))

    def vary(self, name: str, case: Case, problem: MqaLogits, call: Call, device: str) -> Variation:
        return {"rows": _some_rows, "strides": _strides, "edge": at_the_end, "misaligned": off_alignment}[name](call)

    def mutants(self) -> Sequence[Mutant]:
        return MUTANTS

    def right_kernels(self) -> Sequence[Right]:
        return RIGHT

    def proved(self) -> Sequence[Case]:
        one = [case for case in self.cases() if case.dtype == DTYPES[case.seed % len(DTYPES)]]
        return [case for case in one if scores(case) <= _SCORES_MAX]

    def disagreement(self, problem: MqaLogits) -> str:
        """All keys of a row at once, and one after the other."""
        one, other = logits.golden(problem.logits), logits.one_by_one(problem.logits)
        return "" if np.allclose(one, other, rtol=1e-11, atol=1e-12) else "the two oracles differ"


def _some_rows(call: Call) -> Variation:
    """A few rows at a time."""
    given = call.tensors
    spans = [slice(start, start + _ROWS) for start in range(0, given["q"].shape[0], _ROWS)]
    by_row = ("q", "weights", "starts", "ends")
    calls = [call.with_tensors(**{name: given[name][span] for name in by_row}) for span in spans]

    def gather(found: Sequence[Tensors]) -> dict[str, torch.Tensor]:
        return {"out": torch.cat([each["out"] for each in found])}

    return Variation("with a few rows at a time", tuple(calls), gather)


def _strides(call: Call) -> Variation:
    """The same values in other memory: q stored head by head, weights too, the others cut out of larger tensors."""
    given = call.tensors
    tensors = {
        name: x.transpose(0, 1).contiguous().transpose(0, 1) if name in ("q", "weights") else inside(x)
        for name, x in given.items()
    }
    other = replace(call, tensors=tensors)
    return Variation("with the same values in another memory layout", (other,), lambda found: dict(found[0]))
