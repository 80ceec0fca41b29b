"""Kernels that get the layout of packed sequences wrong. What is attention's comes from the bridge."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from xattn_conformance.array import Array
from xattn_conformance.mutants.mutant import Mutant, Results
from xattn_conformance.ops.attention_like import NOBODYS, right_answer
from xattn_conformance.ops.varlen_attention.problem import Varlen, joined, sequences
from xattn_conformance.tolerance.arithmetic import Arithmetic

Change = Callable[[Varlen], Varlen]
Edit = Callable[[Varlen, Results], Results]


def right(problem: Varlen, arithmetic: Arithmetic) -> Results:
    parts = [right_answer(each, arithmetic) for each in sequences(problem)]
    return {name: joined(problem, name, [part[name] for part in parts], nobodys) for name, nobodys in NOBODYS.items()}


def forward(applies: Callable[[Varlen], bool]) -> Callable[[Varlen], bool]:
    return lambda problem: not problem.grads and applies(problem)


def misread(name: str, wrong: str, change: Change, applies: Callable[[Varlen], bool]) -> Mutant:
    """A right kernel for another problem."""

    def run(problem: Varlen, arithmetic: Arithmetic) -> Results:
        return right(change(problem), arithmetic)

    return Mutant(f"varlen-{name}", wrong, run, forward(applies))


def misreturn(name: str, wrong: str, edit: Edit, applies: Callable[[Varlen], bool]) -> Mutant:
    """A right kernel whose results are changed."""

    def run(problem: Varlen, arithmetic: Arithmetic) -> Results:
        return edit(problem, right(problem, arithmetic))

    return Mutant(f"varlen-{name}", wrong, run, forward(applies))


def with_keys(problem: Varlen, pick: Callable[[int], slice]) -> Varlen:
    """Sequence b reads the keys `pick(b)` of the packed ones."""
    picked = [pick(b) for b in range(len(problem.rows))]
    k, v = (np.concatenate([x[each] for each in picked] or [x[:0]]) for x in (problem.k, problem.v))
    ends = np.cumsum([0, *(len(problem.k[each]) for each in picked)])
    return replace(problem, k=k, v=v, cu_seqlens_k=ends.astype(np.int64))


def neighbour(step: int) -> Change:
    return lambda problem: with_keys(problem, lambda b: problem.keys[(b + step) % len(problem.keys)])


def key_ends_by(extra: int) -> Change:
    """Sequences end so many keys later or earlier, where there are keys."""

    def change(problem: Varlen) -> Varlen:
        def pick(b: int) -> slice:
            keys = problem.keys[b]
            stop = min(max(keys.stop + extra, keys.start), len(problem.k))
            return slice(keys.start, stop)

        return with_keys(problem, pick)

    return change


def key_starts_by(extra: int) -> Change:
    def change(problem: Varlen) -> Varlen:
        return with_keys(problem, lambda b: slice(max(problem.keys[b].start + extra, 0), problem.keys[b].stop))

    return change


def as_queries(problem: Varlen) -> Varlen:
    """The keys are cut up where the queries are."""
    total = len(problem.k)
    return with_keys(problem, lambda b: slice(min(problem.rows[b].start, total), min(problem.rows[b].stop, total)))


def as_one(problem: Varlen) -> Varlen:
    """All sequences are read as one."""
    ends = [np.array([0, x[-1].stop if x else 0]) for x in (problem.rows, problem.keys)]
    slopes = problem.alibi_slopes
    return replace(
        problem,
        cu_seqlens_q=ends[0],
        cu_seqlens_k=ends[1],
        align=int(problem.align[0]) if isinstance(problem.align, np.ndarray) else problem.align,
        alibi_slopes=slopes if slopes is None or slopes.ndim == 1 else slopes[0],
    )


def by_longest(problem: Varlen) -> Varlen:
    """The diagonal ends where it would if every sequence were the longest."""
    longest = [max(each.stop - each.start for each in x) for x in (problem.rows, problem.keys)]
    return replace(problem, align=longest[1] - longest[0])


def offsets_of_first(problem: Varlen) -> Varlen:
    assert isinstance(problem.align, np.ndarray)
    return replace(problem, align=np.full_like(problem.align, problem.align[0]))


def slopes_of_first(problem: Varlen) -> Varlen:
    assert problem.alibi_slopes is not None
    return replace(problem, alibi_slopes=np.broadcast_to(problem.alibi_slopes[:1], problem.alibi_slopes.shape))


def padding_written(problem: Varlen, results: Results) -> Results:
    """The rows after the last sequence hold what its last query holds."""
    last = problem.rows[-1].stop
    return {name: with_rows(x, slice(last, None), x[:, :, last - 1 : last]) for name, x in results.items()}


def padding_left(problem: Varlen, results: Results) -> Results:
    """The rows after the last sequence are not written: whatever the memory held."""
    last = problem.rows[-1].stop if problem.rows else 0
    return {name: with_rows(x, slice(last, None), 1.0) for name, x in results.items()}


def last_query_lost(problem: Varlen, results: Results) -> Results:
    """The last query of every sequence is not computed."""
    ends = [rows.stop - 1 for rows in problem.rows if rows.stop > rows.start]
    return {name: with_rows(x, ends, NOBODYS[name]) for name, x in results.items()}


def lse_of_neighbour(problem: Varlen, results: Results) -> Results:
    return {**results, "lse": np.roll(results["lse"], 1, axis=2)}


def lse_by_token(problem: Varlen, results: Results) -> Results:
    """The memory of lse holds (total_q, nheads)."""
    lse = results["lse"]
    return {**results, "lse": lse[0, :, :, 0].T.reshape(lse.shape)}


def empty_nan(problem: Varlen, results: Results) -> Results:
    """A sequence without keys divides 0 by 0."""
    without = [rows for rows, keys in zip(problem.rows, problem.keys, strict=True) if keys.stop == keys.start]
    found = dict(results)
    for rows in without:
        found = {name: with_rows(x, rows, np.nan) for name, x in found.items()}
    return found


def with_rows(x: Array, rows: slice | list[int], value: Array | float) -> Array:
    x = x.copy()
    x[:, :, rows] = value
    return x


def several(problem: Varlen) -> bool:
    """Whether two sequences have queries and keys."""
    both = [q.stop > q.start and k.stop > k.start for q, k in zip(problem.rows, problem.keys, strict=True)]
    return both.count(True) > 1


def positional(problem: Varlen) -> bool:
    return problem.causal or problem.window is not None or problem.alibi_slopes is not None


def padded(problem: Varlen) -> bool:
    return bool(problem.rows) and 0 < problem.rows[-1].stop < len(problem.q)


def has_queries(problem: Varlen) -> bool:
    return any(rows.stop > rows.start for rows in problem.rows)


def has_heads(problem: Varlen) -> bool:
    return has_queries(problem) and problem.q.shape[1] > 1


def moves_diagonal(problem: Varlen) -> bool:
    same = {(q.stop - q.start, k.stop - k.start) for q, k in zip(problem.rows, problem.keys, strict=True)}
    cornered = isinstance(problem.align, str) and problem.align == "bottom_right"
    return several(problem) and positional(problem) and cornered and len(same) > 1


def without_keys(problem: Varlen) -> bool:
    pairs = zip(problem.rows, problem.keys, strict=True)
    return any(q.stop > q.start and k.stop == k.start for q, k in pairs)


MUTANTS = (
    misread("sequence-early", "a sequence reads the keys of the one before it", neighbour(-1), several),
    misread("sequence-late", "a sequence reads the keys of the one after it", neighbour(1), several),
    misread("as-one", "all sequences are one", as_one, several),
    misread("end+1", "a sequence ends one key too late", key_ends_by(1), several),
    misread("end-1", "a sequence ends one key too early", key_ends_by(-1), several),
    misread("start-1", "a sequence begins one key too early", key_starts_by(-1), several),
    misread("start+1", "a sequence begins one key too late", key_starts_by(1), several),
    misread(
        "keys-as-queries",
        "the keys are cut up where the queries are",
        as_queries,
        lambda p: several(p) and p.cu_seqlens_k is not None and not np.array_equal(p.cu_seqlens_k, p.cu_seqlens_q),
    ),
    misread("longest-diagonal", "the diagonal is that of the longest sequences", by_longest, moves_diagonal),
    misread(
        "offsets-of-first",
        "every sequence has the offset of the first",
        offsets_of_first,
        lambda p: isinstance(p.align, np.ndarray) and several(p) and positional(p),
    ),
    misread(
        "slopes-of-first",
        "every sequence has the slopes of the first",
        slopes_of_first,
        lambda p: p.alibi_slopes is not None and p.alibi_slopes.ndim == 2 and several(p),
    ),
    misreturn("padding-written", "the rows after the last sequence hold its last answer", padding_written, padded),
    misreturn("padding-left", "the rows after the last sequence are not written", padding_left, padded),
    misreturn("last-query-lost", "the last query of a sequence is not computed", last_query_lost, has_queries),
    misreturn("lse-of-neighbour", "a query's lse is its neighbour's", lse_of_neighbour, has_queries),
    misreturn("lse-by-token", "lse is written as (total_q, nheads)", lse_by_token, has_heads),
    misreturn("empty-nan", "a sequence without keys divides 0 by 0", empty_nan, without_keys),
)
