"""How far a correct backend may be from the oracle: a rounding error bound for each element, never a loose atol.

The model. Inputs are exact. Every backend computes scores, softmax and sums in float32 (float64 for float64), with unit
roundoff u, sums of n products in any order, and functions (exp, log, tanh) to FUNCTION ulps. It may round to the dtype
of the call, with unit roundoff w, wherever kernels hand a matrix over: the probabilities, the gradients of the scores,
the outputs, and each head's part of a gradient that a group shares. lse is rounded to float32. Then, to first order:

    error of a score    (headdim + STEPS) u sum_d |scale q_d k_d|
    error of a logit    that, and STEPS u (|capped| + |added|)
    relative of p       the logit's error, and its mean over the row under p, and (keys + FUNCTION) u
    error of out        sum_j error(p_j) |v_j|, and (keys u + STEPS w) sum_j p_j |v_j|

and the same for the gradients, always relative to the sum of the absolute values of the terms that are added. SLACK
covers the second order. A number below the dtype's range may be flushed to 0, which `tiny` adds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from xattn_conformance.array import Array
from xattn_conformance.ops.attention.problem import Problem
from xattn_conformance.ops.attention.rowwise import Row, factor, rows, sum_to

STEPS = 4  # roundings of one product on its way: scaling, adding, subtracting the maximum, rescaling
FUNCTION = 24  # ulps of a vectorised exp, log or tanh; PyTorch's fastest exp promises 20
SLACK = 1.5


@dataclass(frozen=True)
class Rounding:
    """The unit roundoffs and the underflow of a call in a dtype."""

    u: float
    w: float
    tiny: float

    @classmethod
    def of(cls, dtype: torch.dtype) -> Rounding:
        compute = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32)
        own = torch.finfo(dtype)
        # Subnormals of float16 are kept on every device, those of the wider types may be flushed.
        smallest = own.smallest_normal * own.eps if dtype == torch.float16 else own.smallest_normal
        return cls(compute.eps / 2, own.eps / 2, max(smallest, compute.smallest_normal))


@dataclass(frozen=True)
class _RowError:
    """Error bounds of one row's scaled scores, probabilities and output, and magnitude = sum_j p_j |v_j|."""

    scaled: Array
    p: Array
    p_sink: float
    lse: float
    out: Array
    magnitude: Array


def _row_error(problem: Problem, row: Row, at: Rounding) -> _RowError:
    keys = problem.k[row.b, row.keys, row.kv]
    values = np.abs(problem.v[row.b, row.keys, row.kv])
    terms = np.abs(factor(problem) * problem.q[row.b, row.i, row.h] * keys).sum(axis=1)
    scaled = (problem.q.shape[3] + STEPS) * at.u * terms
    logit = scaled + (FUNCTION if problem.softcap is not None else STEPS) * at.u * np.abs(row.capped)
    logit = logit + STEPS * at.u * np.abs(row.added)
    sink = 0.0 if problem.sinks is None else STEPS * at.u * abs(problem.sinks[row.h])
    mean = float(row.p @ logit + row.p_sink * sink)
    relative = (len(row.keys) + FUNCTION) * at.u
    p = row.p * (logit + mean + relative + STEPS * at.w) + at.tiny
    magnitude = row.p @ values
    return _RowError(
        scaled,
        p,
        row.p_sink * (sink + mean + relative),
        mean + relative,
        p @ values + (len(row.keys) * at.u + STEPS * at.w) * magnitude + at.tiny,
        magnitude,
    )


def forward(problem: Problem, dtype: torch.dtype) -> tuple[Array, Array]:
    """Bounds of the errors of out and lse. A dead row's are 0, but for a float64 sink that lse rounds."""
    at = Rounding.of(dtype)
    single = torch.finfo(torch.float32).eps / 2
    batch, nheads, seqlen_q, _ = problem.scores_shape
    out = np.zeros((batch, seqlen_q, nheads, problem.v.shape[3]))
    lse = np.zeros((batch, nheads, seqlen_q))
    for row in rows(problem):
        if row.dead:
            lse[row.b, row.h, row.i] = single * abs(row.lse) if np.isfinite(row.lse) else 0.0
        else:
            error = _row_error(problem, row, at)
            out[row.b, row.i, row.h] = SLACK * error.out
            lse[row.b, row.h, row.i] = SLACK * (error.lse + STEPS * single * abs(row.lse))
    return out, lse


def backward(problem: Problem, dtypes: dict[str, torch.dtype], dout: Array, dlse: Array) -> dict[str, Array]:
    """Bounds of the errors of `rowwise.backward`. dtypes: of q, and of bias and sinks where they are given."""
    at = Rounding.of(dtypes["q"])
    # Whatever is summed over queries, heads and batch rows before it is rounded.
    summands = np.prod(problem.scores_shape[:3]) + STEPS
    total = {name: np.zeros_like(getattr(problem, name)) for name in ("q", "k", "v")}
    dlogits, magnitudes = np.zeros(problem.scores_shape), np.zeros(problem.scores_shape)
    dsinks = np.zeros(problem.q.shape[2])
    for row in rows(problem):
        g, dl = np.abs(dout[row.b, row.i, row.h]), abs(dlse[row.b, row.h, row.i])
        error = _row_error(problem, row, at)
        # delta = dout . out, from an out that was rounded.
        delta = float(g @ error.magnitude)
        delta_error = float(g @ error.out) + (len(g) + STEPS) * at.u * delta
        if problem.sinks is not None:
            rounding = Rounding.of(dtypes["sinks"]).w + (summands + STEPS) * at.u
            dsinks[row.h] += (error.p_sink + STEPS * rounding * row.p_sink) * (delta + dl) + row.p_sink * delta_error
            dsinks[row.h] += at.tiny
        for n, j in enumerate(row.keys):
            query = np.abs(problem.q[row.b, row.i, row.h] * factor(problem))
            key = np.abs(problem.k[row.b, j, row.kv] * factor(problem))
            size = float(g @ np.abs(problem.v[row.b, j, row.kv])) + delta + dl
            dz = row.p[n] * size
            dz_error = error.p[n] * size + row.p[n] * ((len(g) + STEPS) * at.u * size + delta_error) + at.tiny
            slope, slope_error = 1.0, 0.0
            if problem.softcap is not None:
                tanh = row.capped[n] / problem.softcap
                slope = 1 - tanh**2
                slope_error = 2 * abs(tanh) * error.scaled[n] / problem.softcap + FUNCTION * at.u
            ds = dz * slope
            ds_error = dz_error * slope + dz * slope_error + STEPS * at.w * ds + at.tiny
            sums = (summands + len(row.keys)) * at.u + STEPS * at.w
            total["q"][row.b, row.i, row.h] += (ds_error + sums * ds) * key
            total["k"][row.b, j, row.kv] += (ds_error + sums * ds) * query
            total["v"][row.b, j, row.kv] += (error.p[n] + sums * row.p[n]) * g
            dlogits[row.b, row.h, row.i, j] = dz_error
            magnitudes[row.b, row.h, row.i, j] = dz
            for name in ("q", "k", "v"):  # a sum below the dtype's range
                index = (row.b, row.i, row.h) if name == "q" else (row.b, j, row.kv)
                total[name][index] += at.tiny
    if problem.bias is not None:
        bias = Rounding.of(dtypes["bias"])
        full = dlogits + (summands * problem.k.shape[1] * at.u + STEPS * (at.w + bias.w)) * magnitudes + bias.tiny
        total["bias"] = sum_to(full, problem.bias.shape)
    if problem.sinks is not None:
        total["sinks"] = dsinks
    return {name: SLACK * bound for name, bound in total.items()}
