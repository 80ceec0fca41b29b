"""The op "attention_backward" as the suite sees it."""

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
from xattn_conformance.ops.attention_backward import cases
from xattn_conformance.ops.attention_backward import problem as problems
from xattn_conformance.ops.attention_backward.mutants import MUTANTS, RIGHTS
from xattn_conformance.ops.attention_backward.problem import Share
from xattn_conformance.ops.attention_like import batch, gradient, rowwise
from xattn_conformance.ops.base import Layout, Op, Variation, Wanted
from xattn_conformance.ops.call import Call
from xattn_conformance.ops.memory import inside
from xattn_conformance.tolerance.arithmetic import CANONICAL, Arithmetic
from xattn_conformance.tolerance.expected import Expected

# The slow oracle sees cases of at most so many scores.
_SCORES_MAX = 10_000


class AttentionBackwardOp(Op[Share]):
    """`xattn.attention_backward`. Its golden is attention's gradient: of the given keys dk and dv, and the sum over
    them that is dq."""

    name = "attention_backward"

    def cases(self) -> Sequence[Case]:
        return cases.load()

    def words(self, case: Case) -> frozenset[str]:
        # A part of the keys is aligned with the queries by an int.
        found = super().words(case)
        return found if case.options["part"] == "1/1" else found | {"offset"}

    def problem(self, case: Case) -> Share:
        return problems.make(case)

    def inputs(self, problem: Share) -> Mapping[str, NDArray[Any]]:
        return problems.inputs(problem)

    def digest(self, problem: Share) -> str:
        return problems.digest(problem)

    def expected(self, case: Case, problem: Share, arithmetic: Arithmetic) -> Mapping[str, Expected]:
        found = gradient.expected(problem.whole, arithmetic, problem.keys)
        return {"dq": found["dq"], "dk": _of(found["dk"], problem.keys), "dv": _of(found["dv"], problem.keys)}

    def call(self, case: Case, problem: Share, device: str) -> Call:
        part, (out, lse) = problem.part, problem.results
        kind = getattr(torch, part.dtype)
        given = {
            "dout": (part.dout, kind),
            "q": (part.q, kind),
            "k": (part.k, kind),
            "v": (part.v, kind),
            "out": (out, kind),
            "lse": (lse, torch.float32),
            "alibi_slopes": (part.alibi_slopes, torch.float32),
            "bias": (part.bias, kind),
            "mask": (part.mask, torch.bool),
            "seqlens_k": (part.seqlens_k, torch.int32),
        }
        options = ("causal", "window", "align", "scale", "softcap", "deterministic")
        return Call(
            op=self.name,
            tensors={
                name: torch.from_numpy(np.ascontiguousarray(values)).to(device=device, dtype=dtype)
                for name, (values, dtype) in given.items()
                if values is not None
            },
            options={name: getattr(part, name) for name in options},
            returns=("dq", "dk", "dv"),
        )

    def layout(self, name: str, tensor: torch.Tensor) -> Array:
        values: Array = tensor.detach().cpu().double().numpy()
        return np.transpose(values, (0, 2, 1, 3))

    def results(self, call: Call) -> Mapping[str, Layout]:
        return {
            f"d{name}": Layout(tuple(call.tensors[name].shape), call.tensors[name].dtype) for name in ("q", "k", "v")
        }

    def wanted(self, case: Case) -> Wanted:
        size = case.shape
        columns: dict[str, int | None] = {"dq": size["headdim"], "dk": size["headdim"], "dv": size["headdim_v"]}
        return Wanted(columns=columns, contiguous=(), per_row=("dq", "dk", "dv"))

    def vary(self, name: str, case: Case, problem: Share, call: Call, device: str) -> Variation:
        if name == "poison":
            other = self.call(case, problems.poisoned(problem, 0.0), device)
            return Variation("with other values where no query may look", (other,), lambda found: dict(found[0]))
        if name == "batch":
            return batch(call)
        tensors = {key: inside(tensor) for key, tensor in call.tensors.items()}
        said = "with the same values in another memory layout"
        return Variation(said, (replace(call, tensors=tensors),), lambda found: dict(found[0]))

    def mutants(self) -> Sequence[Mutant]:
        return MUTANTS

    def right_kernels(self) -> Sequence[Right]:
        return RIGHTS

    def proved(self) -> Sequence[Case]:
        one = [case for case in self.cases() if case.dtype == DTYPES[case.seed % len(DTYPES)]]
        return [case for case in one if scores(case) <= _SCORES_MAX]

    def disagreement(self, problem: Share) -> str:
        whole = problem.whole
        assert whole.dout is not None
        other = rowwise.backward(whole, whole.dout, np.zeros(whole.scores_shape[:3]))
        rest = [slice(0, problem.keys.start), problem.keys, slice(problem.keys.stop, whole.k.shape[1])]
        shares = [gradient.expected(whole, CANONICAL, keys) for keys in rest]
        found = {
            "q": sum(share["dq"].value for share in shares),
            "k": shares[0]["dk"].value,
            "v": shares[0]["dv"].value,
        }
        for name, one in found.items():
            two = other[name].transpose(0, 2, 1, 3)
            if not np.allclose(one, two, rtol=1e-9, atol=1e-9 * np.abs(two).max(initial=0.0)):
                return f"by the other oracle, d{name} is another"
        return ""


def _of(found: Expected, keys: slice) -> Expected:
    """The rows of some keys."""
    common = None if found.common is None else found.common[:, :, keys]
    slack = found.slack if isinstance(found.slack, float) else found.slack[:, :, keys]
    return replace(found, value=found.value[:, :, keys], sigma=found.sigma[:, :, keys], common=common, slack=slack)
