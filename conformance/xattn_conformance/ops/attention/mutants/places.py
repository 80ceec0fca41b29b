"""Mutants that are right but in one kind of call: the kernel that serves it is another, and has its own mistakes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from xattn_conformance.array import Array
from xattn_conformance.mutants.mutant import Mutant
from xattn_conformance.ops.attention.mutants.conditions import Change, Condition, both, has, sees_differently
from xattn_conformance.ops.attention.mutants.masks import no_causal, no_last_key, no_seqlens, no_window, other_corner
from xattn_conformance.ops.attention.mutants.options import (
    capped,
    default_scale,
    has_other_scale,
    moves,
    next_head,
    off,
)
from xattn_conformance.ops.attention.mutants.ways import misread, misreturn
from xattn_conformance.ops.attention.problem import Problem

# Up to so many queries against more keys than a kernel's tile is a decode.
QUERIES = 8
TILE = 64


def is_decode(problem: Problem) -> bool:
    _, _, seqlen_q, seqlen_k = problem.scores_shape
    return seqlen_q <= QUERIES and seqlen_k > 2 * TILE


def is_few(problem: Problem) -> bool:
    """More than one query."""
    return is_decode(problem) and problem.scores_shape[2] > 1


def decode(name: str, wrong: str, change: Change, applies: Condition, where: Condition = is_decode) -> Mutant:
    return misread(f"decode-{name}", f"at few queries {wrong}", change, both(where, applies))


def by_query_of_group(problem: Problem) -> Problem:
    """The heads of a group lie in one tile as its rows: row h * seqlen_q + i ends at the key of a query of that
    number."""
    _, nheads, seqlen_q, seqlen_k = problem.scores_shape
    row = np.arange(nheads) % (nheads // problem.k.shape[2])
    moved = row[:, None, None] * seqlen_q + np.arange(seqlen_q)[:, None] + seqlen_k - seqlen_q
    mask = np.broadcast_to(np.arange(seqlen_k) <= moved, (1, nheads, seqlen_q, seqlen_k))
    return replace(problem, causal=False, mask=mask if problem.mask is None else problem.mask & mask)


def first_row_of_bias(problem: Problem, bias: Array) -> Array:
    return np.broadcast_to(bias[..., :1, :], bias.shape) if bias.ndim > 1 else bias


def empty_rows_nan(problem: Problem, results: dict[str, Array]) -> dict[str, Array]:
    """Parts without a key are merged by 0 / 0."""
    assert problem.seqlens_k is not None
    empty = (problem.seqlens_k == 0).reshape(-1, 1, 1, 1)
    return {**results, "out": np.where(empty, np.nan, results["out"])}


def has_empty_rows(problem: Problem) -> bool:
    return problem.seqlens_k is not None and bool((problem.seqlens_k == 0).any())


def beside(*names: str) -> Condition:
    """Whether one of some other options is on."""
    return lambda problem: any(has(name)(problem) for name in names)


_OTHERS = ("causal", "window", "softcap", "sinks", "alibi_slopes", "bias", "mask", "seqlens_k", "scale")


def forgotten(option: str) -> Mutant:
    """What a combined kernel loses: an option that it has alone, and not beside another."""
    others = beside(*(name for name in _OTHERS if name != option))
    return decode(
        f"{option}-beside", f"{option} is ignored beside another option", off(option), both(has(option), others)
    )


DECODE = (
    decode("sinks-ignored", "the sinks are ignored", off("sinks"), has("sinks")),
    decode(
        "sinks-of-next-head",
        "a head reads its neighbour's sink",
        lambda p: replace(p, sinks=next_head(p, p.sinks)),  # type: ignore[arg-type]
        moves("sinks", next_head),
    ),
    decode(
        "sinks-capped",
        "the sinks are capped as scores are",
        lambda p: replace(p, sinks=capped(p, p.sinks)),  # type: ignore[arg-type]
        both(has("sinks", "softcap"), moves("sinks", capped)),
    ),
    decode("softcap-ignored", "the softcap is ignored", off("softcap"), has("softcap")),
    decode("alibi-ignored", "ALiBi is ignored", off("alibi_slopes"), has("alibi_slopes")),
    decode(
        "alibi-corner",
        "ALiBi is measured from key 0",
        other_corner,
        both(has("alibi_slopes"), lambda p: not p.causal and p.window is None and isinstance(p.align, str)),
    ),
    decode("bias-ignored", "the bias is ignored", off("bias"), has("bias")),
    decode(
        "bias-of-query-0",
        "every query reads the first one's bias",
        lambda p: replace(p, bias=first_row_of_bias(p, p.bias)),  # type: ignore[arg-type]
        moves("bias", first_row_of_bias),
    ),
    decode("mask-ignored", "the mask is ignored", off("mask"), sees_differently(off("mask"))),
    decode("window-ignored", "the window is ignored", no_window, sees_differently(no_window)),
    decode("scale-ignored", "the scale is the default", default_scale, has_other_scale),
    decode("lengths-ignored", "the lengths are ignored", no_seqlens, sees_differently(no_seqlens)),
    decode("last-key-dropped", "the key that was just written is not read", no_last_key, sees_differently(no_last_key)),
    decode("causal-ignored", "causal is ignored", no_causal, sees_differently(no_causal), is_few),
    decode(
        "group-rows",
        "causal counts a group's heads as queries",
        by_query_of_group,
        both(lambda p: p.causal and p.seqlens_k is None, sees_differently(by_query_of_group)),
        is_few,
    ),
    misreturn(
        "decode-empty-nan",
        "at few queries a row of length 0 is merged by 0 / 0",
        empty_rows_nan,
        both(is_decode, has_empty_rows),
    ),
    *map(forgotten, ("window", "softcap", "sinks", "alibi_slopes", "bias", "mask", "seqlens_k")),
)

PLACES = (*DECODE,)
