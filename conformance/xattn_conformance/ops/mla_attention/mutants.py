"""Kernels that get latents or lists of slots wrong. Those of attention come from the bridge, those of pages beside
them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from xattn_conformance.inputs.quantised import decoded
from xattn_conformance.mutants.mutant import Mutant, Results
from xattn_conformance.ops.mla_attention.problem import Latent
from xattn_conformance.ops.paged_mutants import has_queries, live, mutants, right
from xattn_conformance.ops.sequences import Ints
from xattn_conformance.tolerance.arithmetic import Arithmetic

Change = Callable[[Latent], Latent]
Edit = Callable[[Latent, Results], Results]
Test = Callable[[Latent], bool]


def misread(name: str, wrong: str, change: Change, applies: Test) -> Mutant:
    """A right kernel for another problem."""
    return Mutant(f"mla-{name}", wrong, lambda problem, arithmetic: right(change(problem), arithmetic), applies)


def misreturn(name: str, wrong: str, edit: Edit, applies: Test) -> Mutant:
    """A right kernel whose results are changed."""

    def run(problem: Latent, arithmetic: Arithmetic) -> Results:
        return edit(problem, right(problem, arithmetic))

    return Mutant(f"mla-{name}", wrong, run, applies)


def rope_dropped(problem: Latent) -> Latent:
    q = problem.q.copy()
    q[..., problem.rank :] = 0.0
    return replace(problem, q=q)


def rope_first(problem: Latent) -> Latent:
    """The rotated part of a query is taken for its first columns."""
    return replace(problem, q=np.roll(problem.q, problem.q.shape[2] - problem.rank, axis=2))


def values_last(problem: Latent) -> Latent:
    """The value is the last kv_lora_rank columns: past the rank, and into the rotated part."""
    return replace(problem, v_cache=problem.k_cache[..., -problem.rank :])


def scaled(width: Callable[[Latent], int]) -> Change:
    return lambda problem: replace(problem, scale=width(problem) ** -0.5)


def equal_counts(problem: Latent) -> Latent:
    """Every sequence has as many queries as there are on average."""
    batch = len(problem.seqlens_k)
    return replace(problem, cu_seqlens_q=np.arange(batch + 1) * (problem.tokens // batch))


def unscaled_queries(problem: Latent) -> Latent:
    assert problem.q_codes is not None
    return replace(problem, q=decoded(problem.q_codes, "e4m3fn"))


def lists_changed(change: Callable[[Latent, Ints], Ints]) -> Change:
    def changed(problem: Latent) -> Latent:
        assert problem.topk_indices is not None
        return replace(problem, topk_indices=change(problem, problem.topk_indices))

    return changed


def last_slot_for_none(problem: Latent, lists: Ints) -> Ints:
    return np.where(lists == -1, problem.k_cache.shape[0] * problem.k_cache.shape[1] - 1, lists)


def first_slot_for_none(problem: Latent, lists: Ints) -> Ints:
    return np.where(lists == -1, 0, lists)


def next_slot(problem: Latent, lists: Ints) -> Ints:
    slots = problem.k_cache.shape[0] * problem.k_cache.shape[1]
    return np.where(lists >= 0, np.minimum(lists + 1, slots - 1), lists)


def end_at_none(problem: Latent, lists: Ints) -> Ints:
    """What stands behind the first -1 is not looked at."""
    return np.where(np.cumsum(lists < 0, axis=1) > 0, -1, lists)


def last_lost(problem: Latent, lists: Ints) -> Ints:
    """The last column of the lists is not looked at."""
    return np.where(np.arange(lists.shape[1]) == lists.shape[1] - 1, -1, lists)


def of_first(problem: Latent, lists: Ints) -> Ints:
    return np.broadcast_to(lists[:1], lists.shape)


def pages_for_slots(problem: Latent, lists: Ints) -> Ints:
    """What is listed is taken for pages: the first place of each."""
    slots = problem.k_cache.shape[0] * problem.k_cache.shape[1]
    return np.where(lists >= 0, lists * problem.k_cache.shape[1] % slots, lists)


def tiles_of_16(problem: Latent, results: Results) -> Results:
    """Heads past the last 16 are not written: whatever the memory held."""
    whole = problem.q.shape[1] // 16 * 16
    found = {name: x.copy() for name, x in results.items()}
    for x in found.values():
        x[:, whole:] = 1.0
    return found


def none_alone_nan(problem: Latent, results: Results) -> Results:
    """A list of -1 alone divides 0 by 0."""
    dead = [rows.start for rows, (_, keys) in zip(problem.rows, problem.counts, strict=True) if not keys]
    found = {name: x.copy() for name, x in results.items()}
    for x in found.values():
        x[:, :, dead] = np.nan
    return found


def is_live(problem: Latent) -> bool:
    return live(problem) > 0


def has_rope(problem: Latent) -> bool:
    return is_live(problem) and problem.q.shape[2] > problem.rank


def listed(problem: Latent) -> bool:
    return problem.topk_indices is not None and is_live(problem)


def holed(problem: Latent) -> bool:
    return listed(problem) and problem.topk_indices is not None and bool((problem.topk_indices == -1).any())


def ragged(problem: Latent) -> bool:
    counts = {queries for queries, _ in problem.counts}
    return problem.topk_indices is None and is_live(problem) and len(counts) > 1


def of_pages(mutant: Mutant) -> Mutant:
    """A list has no pages to be wrong about."""
    return replace(mutant, applies=lambda problem: problem.topk_indices is None and mutant.applies(problem))


# Those of options that the op does not have show nowhere.
_NOT_HERE = ("mla-tree", "mla-slopes", "mla-offsets", "mla-16-bits", "mla-scale-of-head")

MUTANTS = (
    misread("rope-dropped", "the rotated part of a query is not looked at", rope_dropped, has_rope),
    misread("rope-first", "the rotated part of a query stands first", rope_first, has_rope),
    misread("values-last", "the value is the last columns of a latent", values_last, has_rope),
    misread("scale-of-width", "the scale is 1/sqrt of the latent's width", scaled(lambda p: p.q.shape[2]), is_live),
    misread("scale-of-rank", "the scale is 1/sqrt of kv_lora_rank", scaled(lambda p: p.rank), is_live),
    misread("equal-counts", "every sequence has as many queries as the others", equal_counts, ragged),
    misread("q-scale-dropped", "FP8 queries are taken as they are", unscaled_queries,
            lambda p: p.q_codes is not None and is_live(p)),
    misread("last-slot-for-none", "-1 is the last slot", lists_changed(last_slot_for_none), holed),
    misread("first-slot-for-none", "-1 is slot 0", lists_changed(first_slot_for_none), holed),
    misread("next-slot", "every slot is one too far", lists_changed(next_slot), listed),
    misread("end-at-none", "a list ends at its first -1", lists_changed(end_at_none), holed),
    misread("last-of-list-lost", "the last slot of a list is not looked at", lists_changed(last_lost), listed),
    misread("list-of-first", "every query has the list of the first", lists_changed(of_first), listed),
    misread("pages-for-slots", "what is listed are pages", lists_changed(pages_for_slots), listed),
    misreturn("tiles-of-16", "heads past the last 16 are not written", tiles_of_16,
              lambda p: p.q.shape[1] % 16 > 0 and has_queries(p)),
    misreturn("none-alone-nan", "a list of -1 alone divides 0 by 0", none_alone_nan,
              lambda p: p.topk_indices is not None and any(not keys for _, keys in p.counts)),
    *(of_pages(mutant) for mutant in mutants("mla") if not mutant.name.startswith(_NOT_HERE)),
)  # fmt: skip
