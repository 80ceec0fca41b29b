"""Mutants that are right but in one kind of call: the kernel that serves it is another, and has its own mistakes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from xattn_conformance.array import Array
from xattn_conformance.mutants.mutant import Mutant
from xattn_conformance.ops.attention.mutants.conditions import (
    Change,
    Condition,
    both,
    has,
    keys_beyond,
    queries_beyond,
    sees_differently,
)
from xattn_conformance.ops.attention.mutants.masks import no_causal, no_last_key, no_seqlens, no_window, other_corner
from xattn_conformance.ops.attention.mutants.options import (
    capped,
    default_scale,
    has_other_scale,
    kv_heads,
    moves,
    next_head,
    off,
)
from xattn_conformance.ops.attention.mutants.ways import answer, backward_misreturn, misread, misreturn, with_mask
from xattn_conformance.ops.attention.problem import Problem
from xattn_conformance.tolerance.arithmetic import CANONICAL

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


def only_heads(pick: Callable[[int, int], NDArray[np.int64]]) -> tuple[Change, Condition]:
    """Query head h reads key-value head `pick(nheads, nheads_k)[h]`, where that is another than it should."""

    def change(problem: Problem) -> Problem:
        return kv_heads(pick)(problem)

    def differs(problem: Problem) -> bool:
        nheads, nheads_k = problem.scores_shape[1], problem.k.shape[2]
        return not np.array_equal(pick(nheads, nheads_k), np.arange(nheads) // (nheads // nheads_k))

    return change, differs


def by_shift(nheads: int, nheads_k: int) -> NDArray[np.int64]:
    """The group rounded up to a power of two."""
    return np.arange(nheads) >> max(nheads // nheads_k - 1, 0).bit_length()


def without_columns(multiple: int) -> Change:
    """The columns of q and k past the last multiple are not read."""
    return lambda problem: replace(
        problem,
        q=np.where(np.arange(problem.q.shape[3]) < problem.q.shape[3] // multiple * multiple, problem.q, 0.0),
        scale=float(problem.q.shape[3] ** -0.5) if problem.scale is None else problem.scale,
    )


def ragged_columns(multiple: int, beyond: int = 0) -> Condition:
    return lambda problem: problem.q.shape[3] % multiple > 0 and problem.q.shape[3] > beyond and problem.scale != 0


def columns_past(count: int) -> tuple[Change, Condition]:
    def change(problem: Problem) -> Problem:
        q = problem.q.copy()
        q[..., count:] = 0.0
        return replace(problem, q=q)

    return change, lambda problem: problem.q.shape[3] > count and problem.scale != 0


def row_of(modulus: int) -> tuple[Change, Condition]:
    """Batch row b reads the keys of row b % modulus."""

    def change(problem: Problem) -> Problem:
        rows = np.arange(problem.k.shape[0]) % modulus
        return replace(problem, k=problem.k[rows], v=problem.v[rows])

    return change, lambda problem: problem.q.shape[0] > modulus


def keys_past(count: int) -> tuple[Change, Condition]:
    def change(problem: Problem) -> Problem:
        return with_mask(problem, (np.arange(problem.scores_shape[3]) < count).reshape(1, 1, 1, -1))

    return change, both(keys_beyond(count), sees_differently(change))


def unwritten_heads(count: int) -> Callable[[Problem, dict[str, Array]], dict[str, Array]]:
    def edit(problem: Problem, results: dict[str, Array]) -> dict[str, Array]:
        written = np.arange(problem.scores_shape[1]) < count
        return {**results, "out": np.where(written[:, None, None], results["out"], 0.0)}

    return edit


def keys_by_eight(problem: Problem) -> Problem:
    return with_mask(
        problem, (np.arange(problem.scores_shape[3]) < problem.scores_shape[3] // 8 * 8).reshape(1, 1, 1, -1)
    )


def short_rows(count: int) -> Callable[[Problem, dict[str, Array]], dict[str, Array]]:
    """dK and dV have no part of queries past a count."""

    def edit(problem: Problem, results: dict[str, Array]) -> dict[str, Array]:
        assert problem.dout is not None
        first = (np.arange(problem.scores_shape[2]) < count).reshape(1, -1, 1, 1)
        dlse = None if problem.dlse is None else np.where(first[..., 0].swapaxes(1, 2), problem.dlse, 0.0)
        cut = answer(replace(problem, dout=np.where(first, problem.dout, 0.0), dlse=dlse), CANONICAL)
        return {**results, "dk": cut["dk"], "dv": cut["dv"]}

    return edit


MODELS = (
    misread("group-by-shift", "the group is rounded up to a power of two", *only_heads(by_shift)),
    misread("headdim-by-8", "columns past a multiple of 8 are not read", without_columns(8), ragged_columns(8)),
    misread(
        "headdim-by-64",
        "past 128, columns after a multiple of 64 are not read",
        without_columns(64),
        ragged_columns(64, 128),
    ),
    misread("headdim-past-512", "columns past 512 are not read", *columns_past(512)),
    misread("batch-modulo-4", "batch row b reads the keys of row b % 4", *row_of(4)),
    misreturn("heads-past-64", "heads past 64 are not written", unwritten_heads(64), lambda p: p.scores_shape[1] > 64),
    misread(
        "keys-by-8",
        "past a tile, keys after a multiple of 8 are not read",
        keys_by_eight,
        both(keys_beyond(2 * TILE), sees_differently(keys_by_eight)),
    ),
    misread("keys-past-4096", "keys past 4,096 are not read", *keys_past(4096)),
    misread(
        "sinks-in-group-window",
        "beside a window and groups the sinks are ignored",
        off("sinks"),
        both(has("sinks", "window"), lambda p: p.k.shape[2] < p.q.shape[2]),
    ),
    misread(
        "softcap-in-triple",
        "beside a window and lengths the softcap is ignored",
        off("softcap"),
        has("softcap", "window", "seqlens_k"),
    ),
    misread(
        "window-in-triple",
        "beside a softcap and lengths the window is ignored",
        no_window,
        both(has("softcap", "seqlens_k"), sees_differently(no_window)),
    ),
    backward_misreturn(
        "gradient-past-1024",
        "dK and dV have no part of queries past 1,024",
        short_rows(1024),
        both(queries_beyond(1024), lambda p: {"k", "v"} <= set(p.grads)),
    ),
)

PLACES = (*DECODE, *MODELS)
