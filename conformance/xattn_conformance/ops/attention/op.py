"""The op "attention" as the suite sees it."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from xattn_conformance.array import Array
from xattn_conformance.case import DTYPES, SUITES, Case, scores
from xattn_conformance.golden.manifest import Manifest
from xattn_conformance.inputs import philox
from xattn_conformance.mutants.mutant import Mutant, Right
from xattn_conformance.ops.attention import anchors, cases, dropout, inputs, oracle, rowwise, variations
from xattn_conformance.ops.attention.mutants.right import RIGHT
from xattn_conformance.ops.attention.mutants.zoo import MUTANTS
from xattn_conformance.ops.attention.noise import forward, gradient, second
from xattn_conformance.ops.attention.problem import Problem
from xattn_conformance.ops.attention.visibility import FILLS, filling
from xattn_conformance.ops.base import Chanced, Layout, Op, Switch, Variation, Wanted
from xattn_conformance.ops.call import Call
from xattn_conformance.tolerance.arithmetic import Arithmetic
from xattn_conformance.tolerance.expected import Expected

# Above so many scores the golden is computed for some queries only: all near an edge, and as many at random.
_SCORES_MAX = 2**21
_EDGES = (0, 1, 2, 15, 16, 17, 63, 64, 65, 127, 128, 129, 255, 256, 257)
_RANDOM_ROWS = 64
_STREAM = 99  # of the generator, apart from every tensor's


class AttentionOp(Op[Problem]):
    """`xattn.attention`."""

    name = "attention"

    def cases(self) -> Sequence[Case]:
        return cases.load()

    def words(self, case: Case) -> frozenset[str]:
        # Where a backward pass may follow, so may a gradient through lse.
        found = super().words(case)
        return found | {"grad_lse"} if case.grads and case.options.get("return_lse") else found

    def problem(self, case: Case) -> Problem:
        return inputs.make(case)

    def inputs(self, problem: Problem) -> Mapping[str, NDArray[Any]]:
        return inputs.bits(problem)

    def expected(self, case: Case, problem: Problem, arithmetic: Arithmetic) -> Mapping[str, Expected]:
        rows = None if problem.grads else sampled_rows(case, problem)
        found = forward.expected(problem, arithmetic, rows)
        if rows is not None:
            # An average of values is no larger than the largest of them, in the rows that are not sampled as well.
            seen = np.abs(inputs.poisoned_with(problem, 0.0).v)
            found["out"] = replace(found["out"], most=1.01 * float(seen.max(initial=0.0)))
        if not problem.return_lse:
            del found["lse"]
        if case.family == "probe":
            # exp(-lse), as the column of ones that only key 0 has: all that tells of the lse where it is not returned.
            found["probe"] = found["out"].column(-1, of="out")
        if problem.grads:
            found |= gradient.expected(problem, arithmetic)
        return found

    def call(self, case: Case, problem: Problem, device: str) -> Call:
        tensor = functools.partial(_tensor, device=device)
        dtype = getattr(torch, problem.dtype)
        given = {
            "q": (problem.q, dtype),
            "k": (problem.k, dtype),
            "v": (problem.v, dtype),
            "sinks": (problem.sinks, torch.float32),
            "alibi_slopes": (problem.alibi_slopes, torch.float32),
            "bias": (problem.bias, dtype),
            "mask": (problem.mask, torch.bool),
            "seqlens_k": (problem.seqlens_k, torch.int32),
        }
        incoming = {}
        if problem.dout is not None and case.family != "through_lse":
            incoming["out"] = tensor(problem.dout, dtype)
        if problem.dlse is not None:
            incoming["lse"] = tensor(problem.dlse, torch.float32)
        return Call(
            op=self.name,
            tensors={name: tensor(values, kind) for name, (values, kind) in given.items() if values is not None},
            options={
                "causal": problem.causal,
                "window": problem.window,
                "align": problem.align,
                "scale": problem.scale,
                "softcap": problem.softcap,
                "dropout_p": problem.dropout_p,
                "deterministic": problem.deterministic,
                "return_lse": problem.return_lse,
            },
            wanted=problem.grads,
            incoming=incoming,
        )

    def layout(self, name: str, tensor: torch.Tensor) -> Array:
        values: Array = tensor.detach().cpu().double().numpy()
        if name == "lse":
            return values[..., None]
        if name == "dsinks":
            return values.reshape(1, -1, 1, 1)
        if name == "dbias":
            return values.reshape((1,) * (4 - values.ndim) + values.shape)
        return np.transpose(values, (0, 2, 1, 3))

    def digest(self, problem: Problem) -> str:
        return inputs.digest(problem)

    def results(self, call: Call) -> Mapping[str, Layout]:
        q, v = call.tensors["q"], call.tensors["v"]
        batch, seqlen_q, nheads, _ = q.shape
        found = {"out": Layout((batch, seqlen_q, nheads, v.shape[3]), q.dtype, contiguous=True)}
        if call.options["return_lse"]:
            found["lse"] = Layout((batch, nheads, seqlen_q), torch.float32)
        for name in call.wanted:
            found[f"d{name}"] = Layout(tuple(call.tensors[name].shape), call.tensors[name].dtype)
        return found

    def wanted(self, case: Case) -> Wanted:
        size = case.shape
        columns: dict[str, int | None] = {"out": size["headdim_v"]}
        if case.options.get("return_lse"):
            columns["lse"] = 1
        # "qkv" is three tensors; "lse" asks for gradients that come in through it, and is none.
        if "qkv" in case.grads:
            columns |= {"dq": size["headdim"], "dk": size["headdim"], "dv": size["headdim_v"]}
        columns |= {f"d{name}": one for name, one in (("bias", None), ("sinks", 1)) if name in case.grads}
        return Wanted(
            columns=columns,
            contiguous=("out",),
            # The others sum over the batch.
            per_row=("out", "lse", "dq", "dk", "dv"),
            parts=("probe",) if case.family == "probe" else (),
            by_chance=_of_chance(case) if self.by_chance(case) else (),
        )

    def vary(self, name: str, case: Case, problem: Problem, call: Call, device: str) -> Variation:
        if name in FILLS:
            filled = inputs.poisoned_with(problem, filling(name, problem.dtype))
            return variations.other_inputs(self.call(case, filled, device))
        if name == "second":
            along = second.directions(case, problem)
            tensors = {each: _tensor(values, call.tensors[each].dtype, device) for each, values in along.items()}
            return variations.along(call, tensors, functools.partial(second.expected, problem, along))
        return variations.VARIATIONS[name](call)

    def mutants(self) -> Sequence[Mutant]:
        return MUTANTS

    def impostors(self) -> Sequence[Any]:
        # They judge cases, and judging knows the ops.
        from xattn_conformance.ops.attention.mutants.impostors import IMPOSTORS

        return IMPOSTORS

    def right_kernels(self) -> Sequence[Right]:
        return RIGHT

    def proved(self) -> Sequence[Case]:
        later = [case for case in self.cases() if case.since != SUITES[0] and not case.grads]
        one = [case for case in later if case.dtype == DTYPES[case.seed % len(DTYPES)]]
        return [case for case in one if scores(case) <= anchors.SCORES_MAX]

    def disagreement(self, problem: Problem) -> str:
        (out, lse), (other, other_lse) = oracle.forward(problem), rowwise.forward(problem)
        wrong = anchors.differ({"out": other, "lse": other_lse}, {"out": out, "lse": lse})
        return f"by the other oracle, {wrong}" if wrong else ""

    def verify_stored(self, manifest: Manifest, where: Path) -> Iterator[str]:
        return anchors.verify(manifest, where)

    def knob_cases(self) -> Sequence[Case]:
        return [knob.on for knob in cases.knobs()]

    def switch(self, case: Case, problem: Problem, arithmetic: Arithmetic, device: str) -> Switch:
        (knob,) = [each for each in cases.knobs() if each.on.id == case.id]
        without = replace(problem, **knob.off)
        return Switch(
            on=self.call(case, problem, device),
            off=self.call(case, without, device),
            expected_on=self.expected(case, problem, arithmetic),
            expected_off=self.expected(case, without, arithmetic),
        )

    def by_chance(self, case: Case) -> bool:
        return bool(case.options.get("dropout_p"))

    def without_chance(
        self,
        case: Case,
        problem: Problem,
        arithmetic: Arithmetic,
        expected: Mapping[str, Expected],
        got: Mapping[str, Array],
    ) -> Chanced:
        if not self.by_chance(case):
            return super().without_chance(case, problem, arithmetic, expected, got)
        out, factors, checks = dropout.undropped(problem.dropout_p, expected["out"], got)
        # v may be wider than there are keys.
        kept = factors[..., : problem.k.shape[1]]
        shown = gradient.expected(problem, arithmetic, kept=kept) if problem.grads else {}
        return Chanced({**expected, **shown}, {**got, "out": out}, checks)


def _of_chance(case: Case) -> tuple[str, ...]:
    earlier = case.since in ("1.0", "1.1")
    return ("dropout.share",) if earlier else ("dropout.share", "dropout.independence")


def _tensor(values: NDArray[Any], dtype: torch.dtype, device: str) -> torch.Tensor:
    """Exact: the values are representable in the dtype, and float32 holds those of every narrower one."""
    if values.dtype == np.float64:
        values = values.astype(np.float32)
    return torch.from_numpy(np.ascontiguousarray(values)).to(device=device, dtype=dtype)


def sampled_rows(case: Case, problem: Problem) -> NDArray[np.int64] | None:
    """The queries whose golden is computed; None is all of them."""
    _, _, seqlen_q, _ = problem.scores_shape
    if int(np.prod(problem.scores_shape)) <= _SCORES_MAX:
        return None
    edges = [row for edge in _EDGES for row in (edge, seqlen_q - 1 - edge) if 0 <= row < seqlen_q]
    drawn = philox.words(case.seed, _STREAM, 0, _RANDOM_ROWS).astype(np.int64) % seqlen_q
    return np.unique([*edges, *drawn.tolist()])
