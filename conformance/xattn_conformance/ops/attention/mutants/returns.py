"""Mutants whose results are right until they are written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from xattn_conformance.array import Array
from xattn_conformance.mutants.mutant import IN_FLOAT32, NOWHERE, Mutant, Results
from xattn_conformance.mutants.numbers import nearest, to_dtype
from xattn_conformance.ops.attention.mutants.conditions import (
    Condition,
    always,
    both,
    computes,
    dead,
    has,
    has_dead_rows,
    heads_beyond,
    queries_beyond,
)
from xattn_conformance.ops.attention.mutants.kernel import attend
from xattn_conformance.ops.attention.mutants.options import off, scale
from xattn_conformance.ops.attention.mutants.ways import misreturn
from xattn_conformance.ops.attention.problem import Problem
from xattn_conformance.tolerance.arithmetic import CANONICAL

Edit = Callable[[Problem, Array], Array]


def writes(
    name: str, wrong: str, edit: Edit, applies: Condition = always, equivalent_in: Mapping[str, str] = NOWHERE
) -> Mutant:
    return misreturn(
        name, wrong, lambda problem, results: {**results, "out": edit(problem, results["out"])}, applies, equivalent_in
    )


def mean_of_values(problem: Problem, out: Array) -> Array:
    """mean(V) of the key-value head for every query; NaN and infinities left out."""
    group = out.shape[1] // problem.v.shape[2]
    values = np.where(np.isfinite(problem.v), problem.v, 0.0).transpose(0, 2, 1, 3)
    mean = values.mean(axis=2, keepdims=True).repeat(group, axis=1)
    return np.broadcast_to(_rounded(problem, mean), out.shape)


def _rounded(problem: Problem, x: Array) -> Array:
    return to_dtype(x.astype(np.float32), problem.dtype).astype(np.float64)


def with_row(problem: Problem, out: Array) -> Array:
    """One query in the middle of the last head holds its neighbour's answer."""
    out, row = out.copy(), out.shape[2] // 2
    out[-1, -1, row] = out[-1, -1, row - 1]
    return out


def with_head(problem: Problem, out: Array) -> Array:
    out = out.copy()
    out[:, -1] = out[:, 0]
    return out


def with_swapped_columns(problem: Problem, out: Array) -> Array:
    return out[..., [1, 0, *range(2, out.shape[3])]]


def without_last_column(problem: Problem, out: Array) -> Array:
    return np.concatenate([out[..., :-1], np.zeros_like(out[..., :1])], axis=3)


def without_last_rows(problem: Problem, out: Array) -> Array:
    """Queries that do not fill a tile of 16 are not written."""
    return np.where(np.arange(out.shape[2])[:, None] < out.shape[2] // 16 * 16, out, 0.0)


def has_columns(count: int) -> Condition:
    return lambda problem: problem.v.shape[3] >= count


OUT = (
    writes("zero", "out is 0", lambda p, out: np.zeros_like(out)),
    writes("mean-of-v", "out is mean(V)", mean_of_values),
    writes("sign", "out has the wrong sign", lambda p, out: -out),
    writes("nan", "out is NaN", lambda p, out: np.full_like(out, np.nan)),
    writes("row", "one row holds its neighbour's answer", with_row, queries_beyond(1)),
    writes("head", "the last head holds the first one's answer", with_head, heads_beyond(1)),
    writes(
        "rows-last",
        "the queries past the last full tile are not written",
        without_last_rows,
        lambda p: p.scores_shape[2] % 16 > 0,
    ),
    writes("columns-swapped", "two columns of out are exchanged", with_swapped_columns, has_columns(2)),
    writes("column-dropped", "the last column of out is not written", without_last_column),
    writes(
        "heads-rolled",
        "every head holds its neighbour's answer",
        lambda p, out: np.roll(out, 1, axis=1),
        heads_beyond(1),
    ),
    writes(
        "out-8-bit",
        "out goes through bfloat16",
        lambda p, out: nearest(out.astype(np.float32), 8).astype(float),
        always,
        {"bfloat16": "out is bfloat16 already"},
    ),
    writes("out*1.005", "out is 0.5 % too large", lambda p, out: _rounded(p, out * 1.005)),
    writes(
        "dead-mean-of-v",
        "rows that see nothing hold mean(V)",
        lambda p, out: np.where(dead(p), mean_of_values(p, out), out),
        has_dead_rows,
    ),
    writes("dead-nan", "rows that see nothing hold NaN", lambda p, out: np.where(dead(p), np.nan, out), has_dead_rows),
)


def lse(
    name: str, wrong: str, edit: Edit, applies: Condition = always, equivalent_in: Mapping[str, str] = NOWHERE
) -> Mutant:
    return misreturn(
        f"lse-{name}",
        wrong,
        lambda problem, results: {**results, "lse": edit(problem, results["lse"])},
        both(has("return_lse"), applies),
        equivalent_in,
    )


def of(change: Callable[[Problem], Problem]) -> Edit:
    """The lse of a changed problem."""
    return lambda problem, lse: attend(change(problem), CANONICAL)["lse"]


def dead_with_sink(problem: Problem) -> bool:
    return problem.sinks is not None and has_dead_rows(problem)


def dead_without_sink(problem: Problem) -> bool:
    return problem.sinks is None and has_dead_rows(problem)


LSE = (
    lse("log2", "the lse is to the base 2", lambda p, lse: lse / np.log(2)),
    lse("without-sink", "the lse leaves the sink out", of(off("sinks")), has("sinks")),
    lse("unscaled", "the lse is that of unscaled scores", of(lambda p: replace(p, scale=1.0)), lambda p: scale(p) != 1),
    lse("without-softcap", "the lse is that of scores before the softcap", of(off("softcap")), has("softcap")),
    lse("without-alibi", "the lse leaves ALiBi out", of(off("alibi_slopes")), has("alibi_slopes")),
    lse("sign", "the lse has the wrong sign", lambda p, lse: -lse),
    lse(
        "heads-rolled", "every head holds its neighbour's lse", lambda p, lse: np.roll(lse, 1, axis=1), heads_beyond(1)
    ),
    lse("row", "one row holds its neighbour's lse", with_row, queries_beyond(1)),
    lse("in-dtype", "the lse is rounded to the dtype of q", lambda p, lse: _rounded(p, lse), always, IN_FLOAT32),
    lse(
        "dead-inf",
        "rows that see nothing have an lse of +inf",
        lambda p, lse: np.where(dead(p), np.inf, lse),
        dead_without_sink,
    ),
    lse(
        "dead-0",
        "rows that see nothing have an lse of 0",
        lambda p, lse: np.where(dead(p), 0.0, lse),
        dead_without_sink,
    ),
    lse(
        "dead-sink",
        "rows that see nothing leave the sink out of their lse",
        lambda p, lse: np.where(dead(p), -np.inf, lse),
        dead_with_sink,
    ),
)


def no_keys_nan(problem: Problem, arithmetic: object) -> Results:
    batch, nheads, seqlen_q, _ = problem.scores_shape
    shape = (batch, nheads, seqlen_q)
    return {"out": np.full((*shape, problem.v.shape[3]), np.nan), "lse": np.full((*shape, 1), np.nan)}


def no_keys(problem: Problem) -> bool:
    return (
        problem.scores_shape[3] == 0
        and computes(replace(problem, k=problem.q[:, :1], v=problem.q[:, :1]))
        and not problem.grads
    )


EMPTY = (Mutant("empty-nan", "a call without keys divides 0 by 0", no_keys_nan, no_keys),)

RETURNS = (*OUT, *LSE, *EMPTY)
