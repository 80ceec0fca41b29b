"""The op "paged_attention" as the suite sees it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from xattn_conformance.array import Array
from xattn_conformance.case import DTYPES, Case
from xattn_conformance.mutants.mutant import Mutant
from xattn_conformance.ops.attention_like import FILLS, AttentionLikeOp, Problem, filling, slow_answer
from xattn_conformance.ops.base import Layout, Switch, Variation, Wanted
from xattn_conformance.ops.call import Call
from xattn_conformance.ops.paged import Paged, as_tensor, poisoned
from xattn_conformance.ops.paged_attention import problem as problems
from xattn_conformance.ops.paged_attention.cases import CASES
from xattn_conformance.ops.paged_attention.masked import one_call
from xattn_conformance.ops.paged_mutants import mutants
from xattn_conformance.ops.paged_variations import VARIATIONS
from xattn_conformance.ops.sequences import bits, digest, joined
from xattn_conformance.tolerance.arithmetic import Arithmetic

# The slow oracle, which has all queries and slots in one mask, sees cases of at most so many scores in there.
_SCORES_MAX = 20_000
_OPTIONS = (
    "max_seqlen_q",
    "max_seqlen_k",
    "causal",
    "window",
    "align",
    "scale",
    "softcap",
    "unseen_finite",
    "deterministic",
    "return_lse",
)


class PagedAttentionOp(AttentionLikeOp[Paged]):
    """`xattn.paged_attention`."""

    name = "paged_attention"

    def cases(self) -> Sequence[Case]:
        return CASES.load()

    def problem(self, case: Case) -> Paged:
        return problems.make(case)

    def inputs(self, problem: Paged) -> Mapping[str, NDArray[Any]]:
        return bits(problem.tensors)

    def digest(self, problem: Paged) -> str:
        return digest(problem.tensors)

    def sequences(self, problem: Paged) -> list[Problem]:
        return problem.sequences()

    def joined(self, problem: Paged, name: str, parts: Sequence[Array], nobodys: float) -> Array:
        return joined(problem.rows, problem.shape_of(name), parts, nobodys)

    def returns_lse(self, problem: Paged) -> bool:
        return problem.return_lse

    def own_mutants(self) -> Sequence[Mutant]:
        return mutants("paged")

    def impostors(self) -> Sequence[Any]:
        # They judge cases, and judging knows the ops.
        from xattn_conformance.ops.paged_attention.impostors import IMPOSTORS

        return IMPOSTORS

    def call(self, case: Case, problem: Paged, device: str) -> Call:
        tensors = {name: as_tensor(values, kind, device) for name, (values, kind) in problem.tensors.items()}
        given: dict[str, Any] = {name: getattr(problem, name) for name in _OPTIONS if name not in tensors}
        if problem.out_dtype is not None:
            given["out_dtype"] = getattr(torch, problem.out_dtype)
        return Call(op=self.name, tensors=tensors, options=given, format=case.options.get("format"))

    def layout(self, name: str, tensor: torch.Tensor) -> Array:
        values: Array = tensor.detach().cpu().double().numpy()
        return values[None, ..., None] if name == "lse" else np.transpose(values, (1, 0, 2))[None]

    def results(self, call: Call) -> Mapping[str, Layout]:
        q, v_cache = call.tensors["q"], call.tensors["v_cache"]
        dtype = call.options.get("out_dtype", q.dtype)
        headdim_v = v_cache.shape[3] * (2 if v_cache.dtype == torch.uint8 else 1)
        found = {"out": Layout((*q.shape[:2], headdim_v), dtype, contiguous=True)}
        if call.options["return_lse"]:
            found["lse"] = Layout((q.shape[1], q.shape[0]), torch.float32)
        return found

    def words(self, case: Case) -> frozenset[str]:
        return frozenset("tree_mask" if word == "tree" else word for word in super().words(case))

    def wanted(self, case: Case) -> Wanted:
        columns: dict[str, int | None] = {"out": case.shape["headdim_v"]}
        if case.options.get("return_lse"):
            columns["lse"] = 1
        return Wanted(columns=columns, contiguous=("out",), per_row=("out", "lse"))

    def vary(self, name: str, case: Case, problem: Paged, call: Call, device: str) -> Variation:
        if name in FILLS:
            value = 1.0 if name == "poison" and problem.unseen_finite else filling(name, problem.dtype)
            other = self.call(case, poisoned(problem, value), device)
            return Variation("with other values where no query may look", (other,), lambda found: dict(found[0]))
        return VARIATIONS[name](call)

    def proved(self) -> Sequence[Case]:
        one = [case for case in self.cases() if case.dtype == DTYPES[case.seed % len(DTYPES)]]
        return [case for case in one if _masked_scores(case) <= _SCORES_MAX]

    def disagreement(self, problem: Paged) -> str:
        """The sequences one by one, by the goldens' own oracle, and all of them in one masked call, by the other."""
        whole = slow_answer(one_call(problem))
        golden = self.expected(self.cases()[0], replace(problem, return_lse=True), Arithmetic())
        used = int(problem.starts_q[-1])
        for name, one in golden.items():
            got, want = (x[:, :, :used] for x in (whole[name], one.value))
            if not np.allclose(got, want, rtol=1e-12, atol=1e-12):
                return f"by the other oracle, {name} is another"
        return ""

    def knob_cases(self) -> Sequence[Case]:
        return [knob.on for knob in CASES.knobs()]

    def switch(self, case: Case, problem: Paged, arithmetic: Arithmetic, device: str) -> Switch:
        (knob,) = [each for each in CASES.knobs() if each.on.id == case.id]
        without = replace(problem, **knob.off)
        return Switch(
            on=self.call(case, problem, device),
            off=self.call(case, without, device),
            expected_on=self.expected(case, problem, arithmetic),
            expected_off=self.expected(case, without, arithmetic),
        )


def _masked_scores(case: Case) -> int:
    """At most so many, of all queries with all slots."""
    if case.options.get("pages") == "far":
        return _SCORES_MAX + 1
    size, batch = case.shape, case.shape["batch"]
    slots = 2 * batch * (size["seqlen_k"] + int(case.options["block"])) + 3
    return batch * size["seqlen_q"] * size["nheads"] * slots
