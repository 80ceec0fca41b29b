"""Mutants that misread a number or a tensor of the call: scale, softcap, sinks, ALiBi, bias, mask, heads, layout."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xattn_conformance.array import Array
from xattn_conformance.mutants.mutant import IN_FLOAT32, NOWHERE, Mutant
from xattn_conformance.mutants.numbers import to_dtype
from xattn_conformance.ops.attention.mutants.conditions import (
    Change,
    Condition,
    both,
    has,
    heads_beyond,
    queries_beyond,
)
from xattn_conformance.ops.attention.mutants.grouped import Grouped
from xattn_conformance.ops.attention.mutants.masks import other_corner
from xattn_conformance.ops.attention.mutants.ways import full, misread
from xattn_conformance.ops.attention.problem import Problem


def scale(problem: Problem) -> float:
    return float(Grouped(problem).scale)


def scaled_by(factor: float) -> Change:
    return lambda problem: replace(problem, scale=scale(problem) * factor)


def scaled(problem: Problem) -> bool:
    return scale(problem) != 0


def default_scale(problem: Problem) -> Problem:
    return replace(problem, scale=None)


def has_other_scale(problem: Problem) -> bool:
    return abs(scale(problem) - scale(default_scale(problem))) > 1e-3


SCALE = (
    misread("scale*1.02", "the scale is 2 % too large", scaled_by(1.02), scaled),
    misread("scale*1.005", "the scale is 0.5 % too large", scaled_by(1.005), scaled),
    misread(
        "scale-sign", "the scale's sign is lost", lambda p: replace(p, scale=abs(scale(p))), lambda p: scale(p) < 0
    ),
    misread("scale-ignored", "the scale is always 1/sqrt(headdim)", default_scale, has_other_scale),
    misread("scale-0-is-none", "a scale of 0 is read as the default", default_scale, lambda p: p.scale == 0),
    misread(
        "scale-of-headdim_v",
        "the default scale is 1/sqrt(headdim_v)",
        lambda p: replace(p, scale=float(p.v.shape[3] ** -0.5)),
        lambda p: p.scale is None and p.v.shape[3] != p.q.shape[3],
    ),
    misread(
        "scale-twice",
        "the scores are scaled twice",
        lambda p: replace(p, scale=scale(p) ** 2),
        lambda p: scale(p) not in (0, 1),
    ),
)


def changed(option: str, edit: Callable[[Problem, Any], Any]) -> Change:
    """One option replaced by `edit(problem, its value)`."""
    return lambda problem: replace(problem, **{option: edit(problem, getattr(problem, option))})


def off(option: str) -> Change:
    return changed(option, lambda problem, value: None)


def moves(option: str, edit: Callable[[Problem, Any], Any]) -> Condition:
    """Whether the option is on and the edit changes it."""

    def differ(problem: Problem) -> bool:
        value = getattr(problem, option)
        return value is not None and not np.array_equal(value, edit(problem, value))

    return differ


def edited(
    name: str,
    wrong: str,
    option: str,
    edit: Callable[[Problem, Any], Any],
    equivalent_in: Mapping[str, str] = NOWHERE,
) -> Mutant:
    return misread(name, wrong, changed(option, edit), moves(option, edit), equivalent_in)


def next_head(problem: Problem, values: Array) -> Array:
    return np.roll(values, 1, axis=-1)


def capped(problem: Problem, sinks: Array) -> Array:
    cap = problem.softcap
    return sinks if cap is None else cap * np.tanh(sinks / cap)


SOFTCAP_AND_SINKS = (
    misread("softcap-ignored", "the softcap is ignored", off("softcap"), has("softcap")),
    edited("softcap*1.1", "the softcap is 10 % too large", "softcap", lambda p, cap: 1.1 * cap),
    misread("sinks-ignored", "the sinks are ignored", off("sinks"), has("sinks")),
    edited("sinks-of-next-head", "a head reads its neighbour's sink", "sinks", next_head),
    edited("sinks-scaled", "the sinks are scaled as scores are", "sinks", lambda p, sinks: scale(p) * sinks),
    edited("sinks-capped", "the sinks are capped as scores are", "sinks", capped),
    edited("sinks-sign", "the sinks are subtracted", "sinks", lambda p, sinks: -sinks),
)


def distance(problem: Problem) -> NDArray[np.int64]:
    """(batch, 1, seqlen_q, seqlen_k)."""
    return Grouped(problem).distance(slice(None))[:, 0]


def other_distance(problem: Problem) -> NDArray[np.int64]:
    return distance(other_corner(problem))


def alibi_as(term: Callable[[Problem], Array]) -> Change:
    """ALiBi as `slope * term`, with the term (batch, 1, seqlen_q, seqlen_k)."""

    def change(problem: Problem) -> Problem:
        assert problem.alibi_slopes is not None
        slopes = problem.alibi_slopes.reshape(-1, problem.scores_shape[1], 1, 1)
        bias = slopes * term(problem)
        return replace(problem, alibi_slopes=None, bias=bias if problem.bias is None else problem.bias + bias)

    return change


def alibi(name: str, wrong: str, term: Callable[[Problem], Array]) -> Mutant:
    def differ(problem: Problem) -> bool:
        return problem.alibi_slopes is not None and not np.array_equal(term(problem), -np.abs(distance(problem)))

    return misread(f"alibi-{name}", wrong, alibi_as(term), differ)


def slopes_of_row_0(problem: Problem, slopes: Array) -> Array:
    return np.broadcast_to(slopes[:1], slopes.shape) if slopes.ndim == 2 else slopes


ALIBI = (
    misread("alibi-ignored", "ALiBi is ignored", off("alibi_slopes"), has("alibi_slopes")),
    alibi("sign", "ALiBi is added", lambda p: np.abs(distance(p)).astype(float)),
    alibi("corner", "ALiBi is measured from the other corner", lambda p: -np.abs(other_distance(p)).astype(float)),
    alibi("signed", "ALiBi takes the distance without abs", lambda p: -distance(p).astype(float)),
    alibi(
        "causal-form",
        "ALiBi is measured from the last key, whatever the query",
        lambda p: np.broadcast_to(np.arange(p.scores_shape[3]) - (p.scores_shape[3] - 1.0), distance(p).shape),
    ),
    alibi("scaled", "ALiBi is scaled as scores are", lambda p: -scale(p) * np.abs(distance(p))),
    edited("alibi-of-next-head", "a head reads its neighbour's slope", "alibi_slopes", next_head),
    edited("alibi-of-row-0", "every batch row has the first one's slopes", "alibi_slopes", slopes_of_row_0),
    edited(
        "alibi-in-dtype",
        "the slopes are rounded to the dtype of q",
        "alibi_slopes",
        lambda p, slopes: _rounded(p, slopes),
        IN_FLOAT32,
    ),
)


def _rounded(problem: Problem, values: Array) -> Array:
    return to_dtype(values.astype(np.float32), problem.dtype).astype(np.float64)


def first_of(axis: int) -> Callable[[Problem, NDArray[Any]], NDArray[Any]]:
    """A bias or a mask that is read as if it had one element along an axis."""

    def edit(problem: Problem, values: NDArray[Any]) -> NDArray[Any]:
        whole = full(values)
        return np.broadcast_to(np.take(whole, [0], axis=axis), whole.shape)

    return edit


def transposed(problem: Problem, values: NDArray[Any]) -> NDArray[Any]:
    whole = full(values)
    batch, heads, queries, keys = whole.shape
    reread: NDArray[Any] = np.ascontiguousarray(whole).reshape(batch, heads, keys, queries).swapaxes(2, 3)
    return reread


def finite(values: Array) -> Array:
    return np.where(np.isfinite(values), values, 0.0)


def only_hides(problem: Problem, bias: Array) -> Array:
    return np.where(bias == -np.inf, bias, 0.0)


BIAS = (
    edited("bias-ignored", "the bias is ignored", "bias", lambda p, bias: np.zeros_like(bias)),
    edited("bias-only-hides", "of the bias only its -inf is read", "bias", only_hides),
    edited("bias-inf-ignored", "-inf in the bias hides nothing", "bias", lambda p, bias: finite(bias)),
    edited("bias-sign", "the bias is subtracted", "bias", lambda p, bias: np.where(bias == -np.inf, bias, -bias)),
    edited(
        "bias-scaled",
        "the bias is scaled as scores are",
        "bias",
        lambda p, bias: np.where(bias == -np.inf, bias, finite(bias) * scale(p)),
    ),
    edited("bias-of-head-0", "every head reads the first one's bias", "bias", first_of(1)),
    edited("bias-of-row-0", "every batch row reads the first one's bias", "bias", first_of(0)),
    edited("bias-of-query-0", "every query reads the first one's bias", "bias", first_of(2)),
    edited("bias-transposed", "the bias is read with queries and keys exchanged", "bias", transposed),
    misread("mask-ignored", "the mask is ignored", off("mask"), moves("mask", lambda p, mask: np.ones_like(mask))),
    edited("mask-inverted", "True in the mask hides", "mask", lambda p, mask: ~mask),
    edited("mask-of-head-0", "every head reads the first one's mask", "mask", first_of(1)),
    edited("mask-of-row-0", "every batch row reads the first one's mask", "mask", first_of(0)),
    edited("mask-of-query-0", "every query reads the first one's mask", "mask", first_of(2)),
    edited("mask-transposed", "the mask is read with queries and keys exchanged", "mask", transposed),
)


def kv_heads(pick: Callable[[int, int], NDArray[np.int64]]) -> Change:
    """Query head h reads key-value head `pick(nheads, nheads_k)[h]`."""

    def change(problem: Problem) -> Problem:
        heads = pick(problem.scores_shape[1], problem.k.shape[2])
        return replace(problem, k=problem.k[:, :, heads], v=problem.v[:, :, heads])

    return change


def as_bnsh(problem: Problem) -> Problem:
    """The memory of a BSNH tensor read as BNSH."""

    def again(x: Array) -> Array:
        batch, seqlen, heads, columns = x.shape
        reread: Array = x.reshape(batch, heads, seqlen, columns).transpose(0, 2, 1, 3)
        return reread

    return replace(problem, q=again(problem.q), k=again(problem.k), v=again(problem.v))


def without_last_column(x: Array) -> Array:
    x = x.copy()
    x[..., -1] = 0
    return x


GROUPED = both(lambda p: 1 < p.k.shape[2] < p.q.shape[2])
SEVERAL = both(lambda p: p.k.shape[2] > 1)

LAYOUT = (
    misread(
        "gqa-interleaved",
        "query head h reads key-value head h % nheads_k",
        kv_heads(lambda n, k: np.arange(n) % k),
        GROUPED,
    ),
    misread(
        "gqa-next-head",
        "every group reads its neighbour's keys and values",
        kv_heads(lambda n, k: (np.arange(n) // (n // k) + 1) % k),
        SEVERAL,
    ),
    misread(
        "gqa-head-0",
        "every query head reads key-value head 0",
        kv_heads(lambda n, k: np.zeros(n, dtype=np.int64)),
        SEVERAL,
    ),
    misread("bnsh", "BSNH memory is read as BNSH", as_bnsh, both(queries_beyond(1), heads_beyond(1))),
    misread(
        "headdim-last-dropped",
        "the last column of q and k is not read",
        lambda p: replace(p, q=without_last_column(p.q)),
        scaled,
    ),
    misread(
        "batch-of-row-0",
        "every batch row reads the first one's keys",
        lambda p: replace(p, k=np.broadcast_to(p.k[:1], p.k.shape)),
        lambda p: p.q.shape[0] > 1,
    ),
)

OPTIONS = (*SCALE, *SOFTCAP_AND_SINKS, *ALIBI, *BIAS, *LAYOUT)
