"""Blind mutants by what an argument is taken for."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from xattn_conformance.array import Array
from xattn_conformance.mutants.mutant import IN_FLOAT32, Mutant, Results
from xattn_conformance.mutants.numbers import F32, nearest, to_dtype
from xattn_conformance.ops.attention.mutants.conditions import always
from xattn_conformance.ops.attention.mutants.kernel import Kernel
from xattn_conformance.ops.attention.mutants.options import default_scale, scale
from xattn_conformance.ops.attention.mutants.ways import backward_misread, full, misread, misreturn, misstep
from xattn_conformance.ops.attention.problem import Problem


def by_group(problem: Problem, values: Array, axis: int) -> Array:
    """Of head h what belongs to head h // group."""
    nheads = problem.q.shape[2]
    if values.shape[axis] != nheads:
        return values
    taken: Array = values.take(np.arange(nheads) // (nheads // problem.k.shape[2]), axis=axis)
    return taken


def sinks_by_group(problem: Problem) -> Problem:
    return problem if problem.sinks is None else replace(problem, sinks=by_group(problem, problem.sinks, 0))


def slopes_by_group(problem: Problem) -> Problem:
    slopes = problem.alibi_slopes
    return problem if slopes is None else replace(problem, alibi_slopes=by_group(problem, slopes, -1))


def bias_by_group(problem: Problem) -> Problem:
    return problem if problem.bias is None else replace(problem, bias=by_group(problem, full(problem.bias), 1))


def bias_in_bfloat16(problem: Problem) -> Problem:
    if problem.bias is None:
        return problem
    return replace(problem, bias=nearest(problem.bias.astype(np.float32), 8).astype(np.float64))


def scale_in_dtype(problem: Problem) -> Problem:
    return replace(problem, scale=float(to_dtype(np.array([scale(problem)], np.float32), problem.dtype)[0]))


def scale_of_padded(problem: Problem) -> Problem:
    padded = 1 << (problem.q.shape[3] - 1).bit_length()
    return replace(problem, scale=float(padded) ** -0.5) if problem.scale is None else problem


class TanhClipped(Kernel):
    def cap(self, scaled: F32) -> F32:
        if self.problem.softcap is None:
            return scaled
        return np.clip(scaled, -np.float32(self.problem.softcap), np.float32(self.problem.softcap))


class TanhOverflows(Kernel):
    """(e^2x - 1) / (e^2x + 1)."""

    def cap(self, scaled: F32) -> F32:
        if self.problem.softcap is None:
            return scaled
        softcap = np.float32(self.problem.softcap)
        power = np.exp(2 * scaled / softcap)
        capped: F32 = softcap * (power - 1) / (power + 1)
        return capped


def lse_transposed(problem: Problem, results: dict[str, Array]) -> Results:
    """Written as (batch, seqlen_q, nheads), and read as (batch, nheads, seqlen_q)."""
    lse = results["lse"]
    return {**results, "lse": lse.transpose(0, 2, 1, 3).reshape(lse.shape)}


def lse_and_ln2(problem: Problem, results: dict[str, Array]) -> Results:
    return {**results, "lse": results["lse"] + np.log(2)}


OPTIONS: tuple[Mutant, ...] = (
    misread("sinks-by-group", "a head reads the sink of the number of its key-value head", sinks_by_group, always),
    misread("alibi-by-group", "a head reads the slope of the number of its key-value head", slopes_by_group, always),
    misread("bias-by-group", "a head reads the bias of the number of its key-value head", bias_by_group, always),
    misread(
        "bias-in-bfloat16",
        "the bias is rounded to bfloat16",
        bias_in_bfloat16,
        always,
        {"bfloat16": "the bias is bfloat16 already"},
    ),
    misread("scale-in-dtype", "the scale is rounded to the dtype of q", scale_in_dtype, always, IN_FLOAT32),
    misread("scale-of-padded", "the default scale is that of headdim padded to a power of 2", scale_of_padded, always),
    misstep("tanh-clipped", "the softcap clips", TanhClipped, always),
    misstep("tanh-overflows", "tanh is made of powers that overflow", TanhOverflows, always),
    misreturn("lse-transposed", "the lse is written with heads and queries exchanged", lse_transposed, always),
    misreturn("lse+ln2", "the lse is too large by ln 2", lse_and_ln2, always),
    backward_misread("grad-scale-default", "backward: the scale is the default", default_scale, always),
)
