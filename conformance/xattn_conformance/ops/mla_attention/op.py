"""The op "mla_attention" as the suite sees it."""

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
from xattn_conformance.ops.mla_attention import problem as problems
from xattn_conformance.ops.mla_attention.cases import CASES
from xattn_conformance.ops.mla_attention.masked import one_call
from xattn_conformance.ops.mla_attention.mutants import MUTANTS
from xattn_conformance.ops.mla_attention.problem import Latent
from xattn_conformance.ops.paged import as_tensor, poisoned
from xattn_conformance.ops.paged_variations import VARIATIONS
from xattn_conformance.ops.sequences import bits, digest, joined
from xattn_conformance.tolerance.arithmetic import Arithmetic

# The slow oracle, which has all queries and slots in one mask, sees cases of at most so many scores in there.
_SCORES_MAX = 20_000
_OPTIONS = (
    "max_seqlen_q",
    "max_seqlen_k",
    "causal",
    "scale",
    "softcap",
    "unseen_finite",
    "deterministic",
    "return_lse",
)


class MlaAttentionOp(AttentionLikeOp[Latent]):
    """`xattn.mla_attention`."""

    name = "mla_attention"
    # One head of keys, all of which a sequence's last query sees; a scale that is always given.
    lacks = (
        "offset", "window", "alibi", "gqa", "scale-of-headdim_v", "cap-after-bias", "hidden-values", "skips-by-last",
    )  # fmt: skip

    def cases(self) -> Sequence[Case]:
        return CASES.load()

    def problem(self, case: Case) -> Latent:
        return problems.make(case)

    def inputs(self, problem: Latent) -> Mapping[str, NDArray[Any]]:
        return bits(problem.tensors)

    def digest(self, problem: Latent) -> str:
        return digest(problem.tensors)

    def sequences(self, problem: Latent) -> list[Problem]:
        return problem.sequences()

    def joined(self, problem: Latent, name: str, parts: Sequence[Array], nobodys: float) -> Array:
        return joined(problem.rows, problem.shape_of(name), parts, nobodys)

    def returns_lse(self, problem: Latent) -> bool:
        return problem.return_lse

    def own_mutants(self) -> Sequence[Mutant]:
        return MUTANTS

    def call(self, case: Case, problem: Latent, device: str) -> Call:
        tensors = {name: as_tensor(values, kind, device) for name, (values, kind) in problem.tensors.items()}
        given: dict[str, Any] = {name: getattr(problem, name) for name in _OPTIONS}
        given["kv_lora_rank"] = problem.rank
        if problem.topk_indices is not None:
            # Nobody looks at these: causal is what it is not.
            given |= {"block_table": None, "seqlens_k": None, "causal": case.options.get("causal", False)}
        out_dtype = problem.dtype if problem.q_codes is not None else problem.out_dtype
        if out_dtype is not None:
            given["out_dtype"] = getattr(torch, out_dtype)
        return Call(op=self.name, tensors=tensors, options=given)

    def layout(self, name: str, tensor: torch.Tensor) -> Array:
        values: Array = tensor.detach().cpu().double().numpy()
        return values[None, ..., None] if name == "lse" else np.transpose(values, (1, 0, 2))[None]

    def results(self, call: Call) -> Mapping[str, Layout]:
        q = call.tensors["q"]
        shape = (*q.shape[:2], call.options["kv_lora_rank"])
        found = {"out": Layout(shape, call.options.get("out_dtype", q.dtype), contiguous=True)}
        if call.options["return_lse"]:
            found["lse"] = Layout((q.shape[1], q.shape[0]), torch.float32)
        return found

    def wanted(self, case: Case) -> Wanted:
        columns: dict[str, int | None] = {"out": case.shape["headdim_v"]}
        if case.options.get("return_lse"):
            columns["lse"] = 1
        return Wanted(columns=columns, contiguous=("out",), per_row=("out", "lse"))

    def vary(self, name: str, case: Case, problem: Latent, call: Call, device: str) -> Variation:
        if name in FILLS:
            value = 1.0 if name == "poison" and problem.unseen_finite else filling(name, problem.dtype)
            other = self.call(case, poisoned(problem, value), device)
            return Variation("with other values where no query may look", (other,), lambda found: dict(found[0]))
        return VARIATIONS[name](call)

    def proved(self) -> Sequence[Case]:
        one = [case for case in self.cases() if case.dtype == DTYPES[case.seed % len(DTYPES)]]
        return [case for case in one if _masked_scores(case) <= _SCORES_MAX]

    def disagreement(self, problem: Latent) -> str:
        """The sequences, or queries, one by one, by the goldens' own oracle, and all of them in one masked call, by the
        other."""
        whole = slow_answer(one_call(problem))
        golden = self.expected(self.cases()[0], replace(problem, return_lse=True), Arithmetic())
        for name, one in golden.items():
            got, want = (x[:, :, : problem.tokens] for x in (whole[name], one.value))
            if not np.allclose(got, want, rtol=1e-12, atol=1e-12):
                return f"by the other oracle, {name} is another"
        return ""

    def knob_cases(self) -> Sequence[Case]:
        return [knob.on for knob in CASES.knobs()]

    def switch(self, case: Case, problem: Latent, arithmetic: Arithmetic, device: str) -> Switch:
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
    size, batch = case.shape, case.shape["batch"]
    slots = 2 * batch * (size["seqlen_k"] + int(case.options["block"])) + 3
    return batch * size["seqlen_q"] * size["nheads"] * slots
