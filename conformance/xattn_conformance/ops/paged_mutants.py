"""Kernels that get pages wrong. What is attention's comes from the bridge."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from xattn_conformance.array import Array
from xattn_conformance.inputs.quantised import scales_of
from xattn_conformance.mutants.mutant import Mutant, Results
from xattn_conformance.ops.attention_like import NOBODYS, Problem, right_answer
from xattn_conformance.ops.paged import Flags, Paged, Stored
from xattn_conformance.ops.sequences import Ints, joined
from xattn_conformance.tolerance.arithmetic import Arithmetic

Change = Callable[[Paged], Paged]
Edit = Callable[[Paged, Results], Results]
Test = Callable[[Paged], bool]


def whole(problem: Paged, parts: list[Results]) -> Results:
    return {
        name: joined(problem.rows, problem.shape_of(name), [part[name] for part in parts], nobodys)
        for name, nobodys in NOBODYS.items()
    }


def right(problem: Paged, arithmetic: Arithmetic) -> Results:
    return whole(problem, [right_answer(each, arithmetic) for each in problem.sequences()])


def misread(name: str, wrong: str, change: Change, applies: Test) -> Mutant:
    """A right kernel for another problem."""
    return Mutant(name, wrong, lambda problem, arithmetic: right(change(problem), arithmetic), applies)


def misreturn(name: str, wrong: str, edit: Edit, applies: Test) -> Mutant:
    """A right kernel whose results are changed."""

    def run(problem: Paged, arithmetic: Arithmetic) -> Results:
        return edit(problem, right(problem, arithmetic))

    return Mutant(name, wrong, run, applies)


def table_changed(change: Callable[[Paged, int], Ints]) -> Change:
    """Row b of the table is `change(problem, b)`."""
    return lambda problem: replace(
        problem, block_table=np.stack([change(problem, b) for b in range(len(problem.block_table))])
    )


def pages_of(problem: Paged, b: int) -> int:
    block: int = problem.k_cache.shape[1]
    return -(-int(problem.seqlens_k[b]) // block)


def reversed_row(problem: Paged, b: int) -> Ints:
    row: Ints = problem.block_table[b].copy()
    count = pages_of(problem, b)
    row[:count] = row[:count][::-1].copy()
    return row


def stale_page(problem: Paged, b: int) -> Ints:
    """The last page is still the one of the sequence before, which had its place in the step before."""
    row: Ints = problem.block_table[b].copy()
    count = pages_of(problem, b)
    if count and pages_of(problem, b - 1):
        row[count - 1] = problem.block_table[b - 1, pages_of(problem, b - 1) - 1]
    return row


def one_after_the_other(problem: Paged, b: int) -> Ints:
    before = sum(pages_of(problem, each) for each in range(b))
    return before + np.arange(problem.block_table.shape[1])


def of_16_bits(problem: Paged, b: int) -> Ints:
    row: Ints = problem.block_table[b]
    return np.where(row < 0, row, row % 65_536)


def lengths_by(extra: int) -> Change:
    """Sequences with keys have so many more, as far as the table goes, or fewer."""

    def change(problem: Paged) -> Paged:
        room = problem.block_table.shape[1] * problem.k_cache.shape[1]
        longer = np.minimum(problem.seqlens_k + extra, room)
        return moved(problem, np.where(problem.seqlens_k > 0, longer, 0))

    return change


def last_page_whole(problem: Paged) -> Paged:
    block = problem.k_cache.shape[1]
    return moved(problem, -(-problem.seqlens_k // block) * block)


def by_bound(problem: Paged) -> Paged:
    """Every sequence that has keys has as many as the bound says, as far as the table goes."""
    assert problem.max_seqlen_k is not None
    room = problem.block_table.shape[1] * problem.k_cache.shape[1]
    return moved(problem, np.where(problem.seqlens_k > 0, min(problem.max_seqlen_k, room), 0))


def by_room(problem: Paged) -> Paged:
    """Every sequence that has keys has as many as its row of the table has room for."""
    room = problem.block_table.shape[1] * problem.k_cache.shape[1]
    return moved(problem, np.where(problem.seqlens_k > 0, room, 0))


def longest(problem: Paged) -> Paged:
    """Every sequence that has keys has as many as the longest."""
    return moved(problem, np.where(problem.seqlens_k > 0, problem.seqlens_k.max(initial=0), 0))


def moved(problem: Paged, seqlens_k: Ints) -> Paged:
    """Other lengths, and the diagonal where it was."""
    if isinstance(problem.align, str) and problem.align == "bottom_right":
        offsets = np.array([keys - queries for queries, keys in problem.counts], np.int64)
        return replace(problem, seqlens_k=seqlens_k, align=offsets)
    return replace(problem, seqlens_k=seqlens_k)


def by_longest(problem: Paged) -> Paged:
    """The diagonal ends where it would if every sequence were the longest."""
    queries, keys = (max(each) for each in zip(*problem.counts, strict=True))
    return replace(problem, align=keys - queries)


def offsets_of_first(problem: Paged) -> Paged:
    assert isinstance(problem.align, np.ndarray)
    return replace(problem, align=np.full_like(problem.align, problem.align[0]))


def slopes_of_first(problem: Paged) -> Paged:
    assert problem.alibi_slopes is not None
    return replace(problem, alibi_slopes=np.broadcast_to(problem.alibi_slopes[:1], problem.alibi_slopes.shape))


def tree_changed(change: Callable[[Flags], Flags]) -> Change:
    def changed(problem: Paged) -> Paged:
        assert problem.tree_mask is not None
        return replace(problem, tree_mask=change(problem.tree_mask))

    return changed


def padding_written(problem: Paged, results: Results) -> Results:
    """The rows after the last sequence hold what its last query holds."""
    last = int(problem.starts_q[-1])
    return {name: _with(x, slice(last, None), x[:, :, last - 1 : last]) for name, x in results.items()}


def padding_left(problem: Paged, results: Results) -> Results:
    """The rows after the last sequence are not written: whatever the memory held."""
    return {name: _with(x, slice(int(problem.starts_q[-1]), None), 1.0) for name, x in results.items()}


def last_query_lost(problem: Paged, results: Results) -> Results:
    """The bound of queries is one too small: the last query of the longest sequence is not computed."""
    most = max(queries for queries, _ in problem.counts)
    ends = [rows.stop - 1 for rows in problem.rows if rows.stop - rows.start == most]
    return {name: _with(x, ends, NOBODYS[name]) for name, x in results.items()}


def lse_of_neighbour(problem: Paged, results: Results) -> Results:
    return {**results, "lse": np.roll(results["lse"], 1, axis=2)}


def lse_by_token(problem: Paged, results: Results) -> Results:
    """The memory of lse holds (total_q, nheads)."""
    lse = results["lse"]
    return {**results, "lse": lse[0, :, :, 0].T.reshape(lse.shape)}


def empty_nan(problem: Paged, results: Results) -> Results:
    """A sequence without keys divides 0 by 0."""
    rows = [i for each, (_, keys) in zip(problem.rows, problem.counts, strict=True) if not keys for i in _all(each)]
    return {name: _with(x, rows, np.nan) for name, x in results.items()}


def in_base_2(problem: Paged, arithmetic: Arithmetic) -> Results:
    """The keys in two parts, put together by powers of 2."""
    return whole(problem, [_in_two(each, arithmetic) for each in problem.sequences()])


def _in_two(sequence: Problem, arithmetic: Arithmetic) -> Results:
    keys, queries = sequence.k.shape[1], sequence.q.shape[1]
    half = keys // 2
    corner = keys - queries if sequence.align == "bottom_right" else 0
    off = sequence.align if isinstance(sequence.align, int) else corner
    one, other = (
        right_answer(replace(sequence, k=sequence.k[:, part], v=sequence.v[:, part], align=off - start), arithmetic)
        for part, start in ((slice(0, half), 0), (slice(half, None), half))
    )
    with np.errstate(invalid="ignore"):
        top = np.maximum(one["lse"], other["lse"])
        weights = [np.where(part["lse"] == -np.inf, 0.0, np.exp2(part["lse"] - top)) for part in (one, other)]
        total = sum(weights)
        shares = [each / np.where(total == 0, 1.0, total) for each in weights]
        lse = np.where(total == 0, -np.inf, top + np.log2(np.where(total == 0, 1.0, total)))
    return {"out": shares[0] * one["out"] + shares[1] * other["out"], "lse": lse}


def _with(x: Array, rows: slice | list[int], value: Array | float) -> Array:
    x = x.copy()
    x[:, :, rows] = value
    return x


def _all(rows: slice) -> range:
    return range(rows.start, rows.stop)


def live(problem: Paged) -> int:
    """How many sequences have queries and keys."""
    return sum(queries > 0 and keys > 0 for queries, keys in problem.counts)


def several(problem: Paged) -> bool:
    return live(problem) > 1


def several_pages(problem: Paged) -> bool:
    return any(queries and pages_of(problem, b) > 1 for b, (queries, _) in enumerate(problem.counts))


def positional(problem: Paged) -> bool:
    return problem.causal or problem.window is not None or problem.alibi_slopes is not None


def has_padding(problem: Paged) -> bool:
    return 0 < int(problem.starts_q[-1]) < len(problem.q)


def has_queries(problem: Paged) -> bool:
    return int(problem.starts_q[-1]) > 0


def moves_diagonal(problem: Paged) -> bool:
    cornered = isinstance(problem.align, str) and problem.align == "bottom_right"
    return several(problem) and positional(problem) and cornered and len(set(problem.counts)) > 1


def is_tree(problem: Paged) -> bool:
    return problem.tree_mask is not None and live(problem) > 0


def stored_as(change: Callable[[Stored], Array]) -> Change:
    """Keys and values are what `change` reads out of the stored ones."""

    def changed(problem: Paged) -> Paged:
        assert problem.k_stored is not None
        assert problem.v_stored is not None
        return replace(problem, k_cache=change(problem.k_stored), v_cache=change(problem.v_stored))

    return changed


def scale_rolled(axis: int) -> Callable[[Stored], Array]:
    """Each place has the scale of the one before it along an axis of the pool."""

    def read(stored: Stored) -> Array:
        whole = scales_of(stored.scale, stored.codes.shape[:3])
        return replace(stored, scale=np.roll(whole, 1, axis)).values

    return read


def scale_of_first(stored: Stored) -> Array:
    """One number for all, the first."""
    return replace(stored, scale=stored.scale.reshape(-1)[0]).values


def scale_dropped(stored: Stored) -> Array:
    return replace(stored, scale=np.ones(())).values


def as_storage(name: str) -> Callable[[Stored], Array]:
    return lambda stored: np.nan_to_num(replace(stored, storage=name).values)


def nibbles_swapped(stored: Stored) -> Array:
    return replace(stored, codes=stored.codes.reshape(-1, 2)[:, ::-1].reshape(stored.codes.shape)).values


def unsigned(stored: Stored) -> Array:
    """Negative numbers are read as large ones."""
    whole = scales_of(stored.scale, stored.codes.shape[:3])[..., None]
    return np.asarray(stored.codes * whole)


def is_stored(*storages: str) -> Test:
    return lambda p: live(p) > 0 and p.k_stored is not None and (not storages or p.k_stored.storage in storages)


def scale_varies(axis: int) -> Test:
    """Whether the places that are seen would show it."""

    def test(problem: Paged) -> bool:
        if not is_stored()(problem):
            return False
        changed = stored_as(scale_rolled(axis))(problem)
        seen = problem.seen_slots()
        return bool((changed.v_cache[seen] != problem.v_cache[seen]).any())

    return test


def several_scales(problem: Paged) -> bool:
    return is_stored()(problem) and stored_as(scale_of_first)(problem).v_cache.tobytes() != problem.v_cache.tobytes()


_MUTANTS = (
    misread("scale-of-head", "a head has its neighbour's scale", stored_as(scale_rolled(2)), scale_varies(2)),
    misread("scale-of-token", "a token has the scale of the one before it", stored_as(scale_rolled(1)),
            scale_varies(1)),
    misread("scale-of-block", "a page has the scale of the one before it", stored_as(scale_rolled(0)), scale_varies(0)),
    misread("scale-of-first", "the first scale is that of all", stored_as(scale_of_first), several_scales),
    misread("scale-dropped", "stored numbers are taken as they are", stored_as(scale_dropped), is_stored()),
    misread("nibbles-swapped", "the even dimension is in the high nibble", stored_as(nibbles_swapped),
            is_stored("int4")),
    misread("unsigned", "negative integers are read as large ones", stored_as(unsigned), is_stored("int8", "int4")),
    misread("fnuz-as-fn", "e4m3fnuz is read as e4m3fn, twice as large", stored_as(as_storage("e4m3fn")),
            is_stored("e4m3fnuz")),
    misread("fn-as-fnuz", "e4m3fn is read as e4m3fnuz, half as large", stored_as(as_storage("e4m3fnuz")),
            is_stored("e4m3fn")),
    misread("order", "the pages of a sequence are read from the last to the first", table_changed(reversed_row),
            several_pages),
    misread("stale", "the last page of a sequence is still the one of the sequence before", table_changed(stale_page),
            several),
    misread("row-of-0", "every sequence has the pages of the first", table_changed(lambda p, b: p.block_table[0]),
            several),
    misread("no-table", "pages lie one after the other, and not where the table says",
            table_changed(one_after_the_other), lambda p: live(p) > 0),
    misread("16-bits", "the number of a page is cut to 16 bits", table_changed(of_16_bits),
            lambda p: len(p.k_cache) > 65_536),
    misread("end+1", "a sequence ends one key too late", lengths_by(1), lambda p: live(p) > 0),
    misread("end-1", "a sequence ends one key too early", lengths_by(-1), lambda p: live(p) > 0),
    misread("last-page-whole", "the last page is read whole", last_page_whole, lambda p: live(p) > 0),
    misread("longest", "every sequence has as many keys as the longest", longest, several),
    misread("bound", "every sequence has max_seqlen_k keys", by_bound,
            lambda p: live(p) > 0 and p.max_seqlen_k is not None and p.max_seqlen_k > p.seqlens_k.max()),
    misread("room", "every sequence has as many keys as its row of the table has room for", by_room,
            lambda p: live(p) > 0),
    misread("longest-diagonal", "the diagonal is that of the longest sequences", by_longest, moves_diagonal),
    misread("offsets-of-first", "every sequence has the offset of the first", offsets_of_first,
            lambda p: isinstance(p.align, np.ndarray) and several(p) and positional(p)),
    misread("slopes-of-first", "every sequence has the slopes of the first", slopes_of_first,
            lambda p: p.alibi_slopes is not None and p.alibi_slopes.ndim == 2 and several(p)),
    misread("tree-causal", "the tree is causal as well", lambda p: replace(p, causal=True), is_tree),
    misread("tree-ignored", "every new token sees all of them", tree_changed(np.ones_like), is_tree),
    misread("tree-of-neighbour", "a token has the row of the one before it", tree_changed(lambda x: np.roll(x, 1, 0)),
            is_tree),
    Mutant("base-2", "two parts are put together by powers of 2", in_base_2,
           lambda p: p.sinks is None and p.tree_mask is None and live(p) > 0),
    misreturn("padding-written", "the rows after the last sequence hold its last answer", padding_written, has_padding),
    misreturn("padding-left", "the rows after the last sequence are not written", padding_left, has_padding),
    misreturn("last-query-lost", "the last query of the longest sequence is not computed", last_query_lost,
              has_queries),
    misreturn("lse-of-neighbour", "a query's lse is its neighbour's", lse_of_neighbour, has_queries),
    misreturn("lse-by-token", "lse is written as (total_q, nheads)", lse_by_token,
              lambda p: has_queries(p) and p.q.shape[1] > 1),
    misreturn("empty-nan", "a sequence without keys divides 0 by 0", empty_nan,
              lambda p: any(queries and not keys for queries, keys in p.counts)),
)  # fmt: skip


def mutants(prefix: str) -> tuple[Mutant, ...]:
    """Those of an op, whose names begin so."""
    return tuple(replace(mutant, name=f"{prefix}-{mutant.name}") for mutant in _MUTANTS)
