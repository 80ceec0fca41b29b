"""The op "paged_mqa_logits" as the suite sees it."""

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
from xattn_conformance.ops.paged_mqa_logits import problem as problems
from xattn_conformance.ops.paged_mqa_logits.cases import CASES
from xattn_conformance.ops.paged_mqa_logits.mutants import MUTANTS, RIGHT
from xattn_conformance.ops.paged_mqa_logits.problem import PagedMqaLogits
from xattn_conformance.ops.sequences import bits, digest, slices
from xattn_conformance.ops.tensors import tensor_of
from xattn_conformance.tolerance.arithmetic import Arithmetic
from xattn_conformance.tolerance.expected import Expected

# The slow oracle goes key by key: it sees cases of at most so many scores.
_SCORES_MAX = 30_000


class PagedMqaLogitsOp(Op[PagedMqaLogits]):
    """`xattn.paged_mqa_logits`."""

    name = "paged_mqa_logits"

    def cases(self) -> Sequence[Case]:
        return CASES.load()

    def problem(self, case: Case) -> PagedMqaLogits:
        return problems.make(case)

    def inputs(self, problem: PagedMqaLogits) -> Mapping[str, NDArray[Any]]:
        return bits(problem.tensors)

    def digest(self, problem: PagedMqaLogits) -> str:
        return digest(problem.tensors)

    def expected(self, case: Case, problem: PagedMqaLogits, arithmetic: Arithmetic) -> Mapping[str, Expected]:
        return logits.expected(problem.logits, arithmetic)

    def call(self, case: Case, problem: PagedMqaLogits, device: str) -> Call:
        tensors = {name: tensor_of(values, kind, device) for name, (values, kind) in problem.tensors.items()}
        return Call(op=self.name, tensors=tensors, options={"max_seqlen_k": problem.max_seqlen_k})

    def layout(self, name: str, tensor: torch.Tensor) -> Array:
        values: Array = tensor.detach().cpu().double().numpy()
        return values[None, None]

    def results(self, call: Call) -> Mapping[str, Layout]:
        shape = (call.tensors["q"].shape[0], call.options["max_seqlen_k"])
        return {"out": Layout(shape, torch.float32, contiguous=True)}

    def wanted(self, case: Case) -> Wanted:
        return Wanted(columns={"out": None}, contiguous=("out",), per_row=("out",))

    def vary(self, name: str, case: Case, problem: PagedMqaLogits, call: Call, device: str) -> Variation:
        if name == "batch":
            return _each_alone(call, problem)
        if name == "pages":
            return _elsewhere(call)
        return {"strides": _strides, "edge": at_the_end, "misaligned": off_alignment}[name](call)

    def mutants(self) -> Sequence[Mutant]:
        return MUTANTS

    def right_kernels(self) -> Sequence[Right]:
        return RIGHT

    def proved(self) -> Sequence[Case]:
        one = [case for case in self.cases() if case.dtype == DTYPES[case.seed % len(DTYPES)]]
        return [case for case in one if scores(case) <= _SCORES_MAX]

    def disagreement(self, problem: PagedMqaLogits) -> str:
        """All keys of a row at once, and one after the other."""
        one, other = logits.golden(problem.logits), logits.one_by_one(problem.logits)
        return "" if np.allclose(one, other, rtol=1e-11, atol=1e-12) else "the two oracles differ"


def _each_alone(call: Call, problem: PagedMqaLogits) -> Variation:
    """Every sequence in a call of its own; rows of none are -inf."""
    given, rows = call.tensors, slices(problem.starts_q)

    def alone(b: int) -> Call:
        some = {name: given[name][rows[b]] for name in ("q", "weights")}
        some |= {name: given[name][b : b + 1] for name in ("block_table", "seqlens_k")}
        if "cu_seqlens_q" in given:
            some["cu_seqlens_q"] = given["cu_seqlens_q"][b : b + 2] - given["cu_seqlens_q"][b]
        return call.with_tensors(**some)

    def gather(found: Sequence[Tensors]) -> dict[str, torch.Tensor]:
        shape = (given["q"].shape[0], call.options["max_seqlen_k"])
        whole = torch.full(shape, -torch.inf, device=given["q"].device)
        for own, each in zip(rows, found, strict=True):
            whole[own] = each["out"]
        return {"out": whole}

    return Variation("with each sequence called alone", tuple(map(alone, range(len(rows)))), gather)


def _elsewhere(call: Call) -> Variation:
    """The pages in reverse, and the table says so."""
    given = call.tensors
    last = given["k_cache"].shape[0] - 1
    table = torch.where(given["block_table"] <= last, last - given["block_table"], given["block_table"])
    turned = {name: _flipped(given[name]) for name in ("k_cache", "k_scale") if name in given}
    other = call.with_tensors(block_table=table, **turned)
    return Variation("with the pages elsewhere in the pool", (other,), lambda found: dict(found[0]))


def _flipped(cache: torch.Tensor) -> torch.Tensor:
    """Pages from the last on. torch flips no FP8."""
    return cache.view(torch.uint8).flip(0).view(cache.dtype) if cache.element_size() == 1 else cache.flip(0)


def _strides(call: Call) -> Variation:
    """The same values in other memory: q stored head by head, weights too, the others cut out of larger tensors."""
    tensors = {
        name: x.transpose(0, 1).contiguous().transpose(0, 1) if name in ("q", "weights") else inside(x)
        for name, x in call.tensors.items()
    }
    other = replace(call, tensors=tensors)
    return Variation("with the same values in another memory layout", (other,), lambda found: dict(found[0]))
