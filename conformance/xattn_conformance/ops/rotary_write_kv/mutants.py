"""Kernels that rotate or write wrongly, and a right one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from xattn_conformance.array import Array
from xattn_conformance.inputs.formats import round_to
from xattn_conformance.mutants.mutant import Mutant, Results, Right
from xattn_conformance.ops import rotation
from xattn_conformance.ops.rotary_write_kv.problem import RotaryWrite, results
from xattn_conformance.tolerance.arithmetic import CANONICAL
from xattn_conformance.tolerance.expected import Expected

Change = Callable[[RotaryWrite], RotaryWrite]
Test = Callable[[RotaryWrite], bool]


def run(problem: RotaryWrite, q: Array, k: Array, v: Array | None) -> Results:
    """What is returned and written of q, k and v as they are after the rotation, rounded to the dtype."""
    turned_q, turned_k = (Expected(round_to(x, problem.dtype), np.zeros_like(x)) for x in (q, k))
    return {name: each.value for name, each in results(problem, turned_q, turned_k, v).items()}


def right(problem: RotaryWrite) -> Results:
    return run(problem, problem.turned(problem.q).value, problem.turned(problem.k).value, problem.v)


def misread(name: str, wrong: str, change: Change, applies: Test) -> Mutant:
    """A right kernel for another problem."""
    return Mutant(f"rotary-write-{name}", wrong, lambda problem, arithmetic: right(change(problem)), applies)


def mismade(name: str, wrong: str, make: Callable[[RotaryWrite], Results], applies: Test) -> Mutant:
    return Mutant(f"rotary-write-{name}", wrong, lambda problem, arithmetic: make(problem), applies)


def key_as_it_was(problem: RotaryWrite) -> Results:
    return run(problem, problem.turned(problem.q).value, problem.k, problem.v)


def query_as_it_was(problem: RotaryWrite) -> Results:
    return run(problem, problem.q, problem.turned(problem.k).value, problem.v)


def skipped_not_rotated(problem: RotaryWrite) -> Results:
    turned = problem.turned(problem.q).value
    q = np.where((problem.slots < 0)[:, None, None], problem.q, turned)
    return run(problem, q, problem.turned(problem.k).value, problem.v)


def value_rotated(problem: RotaryWrite) -> Results:
    assert problem.v is not None
    v = round_to(problem.turned(problem.v).value, problem.dtype)
    return run(problem, problem.turned(problem.q).value, problem.turned(problem.k).value, v)


def at_the_other_end(problem: RotaryWrite) -> Results:
    """Of a latent the first dimensions are rotated, and else the last."""
    width = 2 * problem.cos.shape[1]

    def turned(x: Array) -> Array:
        first = 0 if problem.v is None else x.shape[2] - width
        part = rotation.rotated(x[..., first : first + width], problem.cos, problem.sin, problem.interleaved)
        return np.concatenate([x[..., :first], part, x[..., first + width :]], axis=2)

    return run(problem, turned(problem.q), turned(problem.k), problem.v)


def last_slot_for_none(problem: RotaryWrite) -> RotaryWrite:
    last = problem.k_cache.shape[0] * problem.k_cache.shape[1] - 1
    return replace(problem, slots=np.where(problem.slots < 0, last, problem.slots))


def next_slot(problem: RotaryWrite) -> RotaryWrite:
    slots = problem.k_cache.shape[0] * problem.k_cache.shape[1]
    return replace(problem, slots=np.where(problem.slots < 0, -1, (problem.slots + 1) % slots))


def scale_of_the_unrotated(problem: RotaryWrite) -> Results:
    """The scale of a key is the one that it had before it was rotated."""
    unturned = right(replace(problem, cos=np.ones_like(problem.cos), sin=np.zeros_like(problem.sin)))
    return {**right(problem), "k_scale": unturned["k_scale"]}


def scale_kept(problem: RotaryWrite) -> Results:
    """The scales of tokens are made, and not written."""
    return {**right(problem), **{name: scale[..., None].swapaxes(1, 2) for name, scale in problem.scales.items()}}


def scale_of_other_head(problem: RotaryWrite) -> RotaryWrite:
    return replace(problem, scales={name: np.roll(scale, 1, -1) for name, scale in problem.scales.items()})


def nothing_written(problem: RotaryWrite) -> RotaryWrite:
    return replace(problem, slots=np.full_like(problem.slots, -1))


def has_tokens(problem: RotaryWrite) -> bool:
    return len(problem.q) > 0


def several(problem: RotaryWrite) -> bool:
    return len(problem.q) > 1


def writes(problem: RotaryWrite) -> bool:
    return bool((problem.slots >= 0).any())


def writes_scales(problem: RotaryWrite) -> bool:
    return writes(problem) and any(scale.ndim == 3 for scale in problem.scales.values())


def reads_scales(problem: RotaryWrite) -> bool:
    return writes(problem) and any(scale.ndim == 1 and len(set(scale)) > 1 for scale in problem.scales.values())


def skips(problem: RotaryWrite) -> bool:
    return bool((problem.slots < 0).any()) and problem.k_cache.shape[0] > 0


def partial(problem: RotaryWrite) -> bool:
    return has_tokens(problem) and problem.k.shape[2] > 2 * problem.cos.shape[1]


MUTANTS = (
    mismade("key-as-it-was", "the key is written as it was", key_as_it_was, writes),
    mismade("query-as-it-was", "the query is returned as it was", query_as_it_was, has_tokens),
    mismade("skipped-not-rotated", "the queries of slot -1 are not rotated", skipped_not_rotated,
            lambda p: has_tokens(p) and bool((p.slots < 0).any())),
    mismade("value-rotated", "values are rotated too", value_rotated,
            lambda p: writes(p) and p.v is not None and p.v.shape[2] >= 2 * p.cos.shape[1]),
    mismade("other-end", "the other end of a head is rotated", at_the_other_end, partial),
    misread("back", "the rotation is the one back", lambda p: replace(p, sin=-p.sin), has_tokens),
    misread("pairs", "pairs lie the other way", lambda p: replace(p, interleaved=not p.interleaved),
            lambda p: has_tokens(p) and p.cos.shape[1] > 1),
    misread("of-neighbour", "a token has the angles of the one before it",
            lambda p: replace(p, cos=np.roll(p.cos, 1, 0), sin=np.roll(p.sin, 1, 0)), several),
    misread("of-first", "every token has the angles of the first",
            lambda p: replace(p, cos=p.cos[:1].repeat(len(p.cos), 0), sin=p.sin[:1].repeat(len(p.sin), 0)), several),
    misread("last-for-none", "-1 is the last slot", last_slot_for_none, skips),
    misread("next-slot", "every slot is one too far", next_slot, writes),
    mismade("scale-of-unrotated", "the scale of a key is the one of before", scale_of_the_unrotated, writes_scales),
    mismade("scale-kept", "the scale of a token is not written", scale_kept, writes_scales),
    misread("scale-of-head", "a head has its neighbour's scale", scale_of_other_head, reads_scales),
    misread("nothing", "nothing is written", nothing_written, writes),
)  # fmt: skip


def _right(problem: RotaryWrite) -> Results:
    """By a complex product, one token after the other."""
    width = 2 * problem.cos.shape[1]
    made = []
    for x in (problem.q, problem.k):
        first = x.shape[2] - width if problem.v is None else 0
        rows = [
            np.concatenate(
                [x[t : t + 1, :, :first],
                 rotation.as_complex(x[t : t + 1, :, first:], problem.cos[t : t + 1], problem.sin[t : t + 1],
                                     problem.interleaved)], axis=2,
            )
            for t in range(len(x))
        ]  # fmt: skip
        made.append(np.concatenate([*rows, x[:0]]))
    return run(problem, made[0], made[1], problem.v)


RIGHTS = (Right("rotary_write_kv: one token after the other", CANONICAL, _right, lambda problem: True),)
