"""Mutants of the backward: their out and lse are right."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import prod

import numpy as np

from xattn_conformance.array import Array
from xattn_conformance.mutants.mutant import IN_FLOAT32, Mutant
from xattn_conformance.mutants.numbers import to_dtype
from xattn_conformance.ops.attention.mutants import gradients
from xattn_conformance.ops.attention.mutants.conditions import (
    Change,
    Condition,
    always,
    both,
    has,
    has_dead_rows,
    heads_beyond,
    keys_beyond,
    queries_beyond,
    sees_differently,
)
from xattn_conformance.ops.attention.mutants.masks import (
    CORNERED,
    at_corner,
    by_offset,
    causal_by,
    no_causal,
    no_last_key,
    no_seqlens,
    no_window,
    offset_by,
    other_corner,
    window_by,
)
from xattn_conformance.ops.attention.mutants.options import moves, off, scale, scaled, scaled_by
from xattn_conformance.ops.attention.mutants.ways import backward_misread, backward_misreturn, backward_misstep
from xattn_conformance.ops.attention.problem import Problem


def asks(*names: str) -> Condition:
    return lambda problem: set(names) <= set(problem.grads)


def misseen(name: str, wrong: str, change: Change, needs: Condition) -> Mutant:
    return backward_misread(f"grad-{name}", f"backward: {wrong}", change, both(needs, sees_differently(change)))


def ones(problem: Problem, mask: object) -> object:
    return np.ones_like(mask)


MISREAD = (
    misseen("causal-ignored", "causal is ignored", no_causal, has("causal")),
    misseen("causal+1", "causal shows one key behind the diagonal", causal_by(1), has("causal")),
    misseen("causal-1", "causal hides the diagonal", causal_by(-1), has("causal")),
    misseen("other-corner", "top_left is taken for bottom_right, and the reverse", other_corner, CORNERED),
    misseen("offset+1", "an offset is one too large", offset_by(1), by_offset),
    misseen("offset-bottom-right", "an offset is taken for bottom_right", at_corner("bottom_right"), by_offset),
    misseen("window-ignored", "the window is ignored", no_window, has("window")),
    misseen("window-left+1", "the window has one key more to the left", window_by(1, 0), has("window")),
    misseen("seqlens-ignored", "seqlens_k is ignored", no_seqlens, has("seqlens_k")),
    misseen("mask-ignored", "the mask is ignored", off("mask"), has("mask")),
    misseen("key-last-dropped", "the last key is not read", no_last_key, always),
    backward_misread("grad-softcap-ignored", "backward: the softcap is ignored", off("softcap"), has("softcap")),
    backward_misread("grad-alibi-ignored", "backward: ALiBi is ignored", off("alibi_slopes"), has("alibi_slopes")),
    backward_misread("grad-scale*1.02", "backward: the scale is 2 % too large", scaled_by(1.02), scaled),
    backward_misread(
        "grad-bias-ignored",
        "backward: the bias is ignored",
        lambda p: replace(p, bias=np.where(p.bias == -np.inf, -np.inf, 0.0)),
        both(has("bias"), moves("bias", lambda p, bias: np.where(bias == -np.inf, -np.inf, 0.0))),
    ),
)

DLSE = has("dlse")
SOFTCAP = has("softcap")
GROUPS = both(lambda p: p.k.shape[2] < p.q.shape[2])
TILES = keys_beyond(16)


def reduces_bias(problem: Problem) -> bool:
    """Whether the bias is broadcast over anything."""
    return problem.bias is not None and problem.bias.size < prod(problem.scores_shape)


def reduces_batch(problem: Problem) -> bool:
    return problem.bias is not None and problem.q.shape[0] > 1 and (problem.bias.ndim < 4 or problem.bias.shape[0] == 1)


DBIAS, DSINKS = asks("bias"), asks("sinks")

MISSTEPS = (
    backward_misstep("delta-ignored", "dZ = p dP", gradients.DeltaIgnored, always),
    backward_misstep("delta-without-sink", "delta as if there were no sink", gradients.DeltaWithoutSink, has("sinks")),
    backward_misstep(
        "delta-of-next-row", "a row reads its neighbour's delta", gradients.DeltaOfNextRow, queries_beyond(1)
    ),
    backward_misstep("dlse-ignored", "the gradient of the lse is ignored", gradients.DlseIgnored, DLSE),
    backward_misstep("dlse-sign", "the gradient of the lse has the wrong sign", gradients.DlseSign, DLSE),
    backward_misstep("slope-missing", "the derivative of the softcap is missing", gradients.SlopeMissing, SOFTCAP),
    backward_misstep(
        "slope-not-squared", "the derivative of the softcap is 1 - tanh", gradients.SlopeNotSquared, SOFTCAP
    ),
    backward_misstep("slope-twice", "the derivative of the softcap is applied twice", gradients.SlopeTwice, SOFTCAP),
    backward_misstep("dk-of-last-head", "dK is the share of a group's last head", gradients.KeysOfLastHead, GROUPS),
    backward_misstep("dv-of-last-head", "dV is the share of a group's last head", gradients.ValuesOfLastHead, GROUPS),
    backward_misstep(
        "group-16-bit",
        "a group of many heads is added up in the dtype",
        gradients.GroupSummedIn16Bit,
        lambda p: p.q.shape[2] // p.k.shape[2] > 32,
        IN_FLOAT32,
    ),
    backward_misstep("group-averaged", "dK and dV are averaged over a group", gradients.GroupAveraged, GROUPS),
    backward_misstep(
        "group-interleaved",
        "query head h adds to key-value head h % nheads_k",
        gradients.GroupInterleaved,
        both(GROUPS, lambda p: p.k.shape[2] > 1),
    ),
    backward_misstep(
        "dq-of-last-tile", "dQ is the share of the last tile of keys", gradients.QueryOfLastTile, TILES, block=16
    ),
    backward_misstep(
        "dq-16-bit", "dQ is summed up in the dtype", gradients.QueryAccumulatedIn16Bit, TILES, IN_FLOAT32, block=16
    ),
    backward_misstep(
        "dk-16-bit", "dK is summed up in the dtype", gradients.KeysAccumulatedIn16Bit, queries_beyond(16), IN_FLOAT32
    ),
    backward_misstep("ds-cut-off", "dS is cut off, not rounded", gradients.ScoreGradientsCutOff, always, IN_FLOAT32),
    backward_misstep("p-twice", "dZ = p^2 (dP - delta)", gradients.ProbabilitiesAgain, always),
    backward_misstep(
        "grad-dead-uniform",
        "rows that see nothing send gradients to all keys",
        gradients.DeadUniform,
        both(has_dead_rows, lambda p: p.sinks is None),
    ),
    backward_misstep(
        "grad-dead-nan",
        "rows that see nothing have NaN gradients",
        gradients.DeadNan,
        both(has_dead_rows, lambda p: p.sinks is None),
    ),
    backward_misstep(
        "dk-last-tile-dropped", "dK leaves out the last 16 queries", gradients.LastQueriesDropped, queries_beyond(16)
    ),
    backward_misstep(
        "dk-last-query-dropped", "dK leaves out the last query", gradients.LastQueryDropped, queries_beyond(1)
    ),
    backward_misstep("dbias-by-slope", "dbias goes through the softcap", gradients.BiasBySlope, both(DBIAS, SOFTCAP)),
    backward_misstep(
        "dbias-scaled", "dbias is scaled as scores are", gradients.BiasScaled, both(DBIAS, lambda p: scale(p) != 1)
    ),
    backward_misstep(
        "dbias-averaged", "dbias is averaged, not added up", gradients.BiasAveraged, both(DBIAS, reduces_bias)
    ),
    backward_misstep("dbias-of-first", "dbias is not added up", gradients.BiasOfFirst, both(DBIAS, reduces_bias)),
    backward_misstep(
        "dbias-of-last-row",
        "dbias is that of the last batch row",
        gradients.BiasOfLastBatchRow,
        both(DBIAS, reduces_batch),
    ),
    backward_misstep(
        "dsinks-without-dlse",
        "dsinks leaves the gradient of the lse out",
        gradients.SinksWithoutDlse,
        both(DSINKS, DLSE),
    ),
    backward_misstep(
        "dsinks-of-last-query",
        "dsinks is that of the last query",
        gradients.SinksOfLastRow,
        both(DSINKS, queries_beyond(1)),
    ),
)

Edit = Callable[[Problem, Array], Array]


def writes(name: str, wrong: str, edit: Edit, applies: Condition = always) -> tuple[Mutant, ...]:
    """A mutant for each of dQ, dK and dV."""

    def one(tensor: str) -> Mutant:
        return backward_misreturn(
            f"{tensor}-{name}",
            f"{tensor} {wrong}",
            lambda problem, results: {**results, tensor: edit(problem, results[tensor])},
            both(asks(tensor[1:]), applies),
        )

    return tuple(one(tensor) for tensor in ("dq", "dk", "dv"))


def times(factor: float) -> Edit:
    return lambda problem, grad: to_dtype((grad * factor).astype(np.float32), problem.dtype).astype(np.float64)


def with_row(problem: Problem, grad: Array) -> Array:
    """One row in the middle of the last head holds its neighbour's gradient."""
    grad, row = grad.copy(), grad.shape[2] // 2
    grad[-1, -1, row] = grad[-1, -1, row - 1]
    return grad


def by_scale(power: int) -> Edit:
    return lambda problem, grad: times(scale(problem) ** power)(problem, grad)


def other(name: str, wrong: str, tensor: str, edit: Edit, applies: Condition = always) -> Mutant:
    return backward_misreturn(
        name,
        wrong,
        lambda problem, results: {**results, tensor: edit(problem, results[tensor])},
        both(asks(tensor[1:]), applies),
    )


def unlike_one(problem: Problem) -> bool:
    return scale(problem) not in (0.0, 1.0)


def same_shape(problem: Problem) -> bool:
    return problem.k.shape == problem.v.shape


MISRETURNS = (
    *writes("zero", "is 0", times(0.0)),
    *writes("sign", "has the wrong sign", times(-1.0)),
    *writes("nan", "is NaN", lambda p, grad: np.full_like(grad, np.nan)),
    *writes("*1.02", "is 2 % too large", times(1.02)),
    *writes("*1.005", "is 0.5 % too large", times(1.005)),
    *writes("row", "holds a neighbour's row", with_row, both(queries_beyond(1), keys_beyond(1))),
    *writes("heads-rolled", "holds the neighbouring head's", lambda p, grad: np.roll(grad, 1, axis=1), heads_beyond(1))[
        :1
    ],
    other("dq-unscaled", "dQ is not scaled", "dq", by_scale(-1), unlike_one),
    other("dk-unscaled", "dK is not scaled", "dk", by_scale(-1), unlike_one),
    other("dq-scaled-twice", "dQ is scaled twice", "dq", by_scale(1), unlike_one),
    other("dsinks-sign", "dsinks has the wrong sign", "dsinks", lambda p, grad: -grad),
    other("dsinks-zero", "dsinks is 0", "dsinks", lambda p, grad: np.zeros_like(grad)),
    other("dbias-zero", "dbias is 0", "dbias", lambda p, grad: np.zeros_like(grad)),
    backward_misreturn(
        "dk-dv-swapped",
        "dK and dV are exchanged",
        lambda p, r: {**r, "dk": r["dv"], "dv": r["dk"]},
        both(asks("k", "v"), same_shape),
    ),
)

BACKWARDS = (*MISREAD, *MISSTEPS, *MISRETURNS)
