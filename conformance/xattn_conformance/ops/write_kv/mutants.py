"""Kernels that write to the wrong place, or the wrong thing, and a right one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from xattn_conformance.array import Array
from xattn_conformance.inputs.quantised import (
    STORAGES,
    Codes,
    Quantise,
    Rescale,
    encoded,
    packed,
    quantised,
    read,
    scale_for,
    scales_of,
)
from xattn_conformance.mutants.mutant import Mutant, Results, Right
from xattn_conformance.ops.write_kv.problem import (
    CACHES,
    Ints,
    Place,
    Write,
    before,
    results,
    written,
)
from xattn_conformance.tolerance.arithmetic import CANONICAL

Test = Callable[[Write], bool]


def misread(name: str, wrong: str, change: Callable[[Write], Write], applies: Test) -> Mutant:
    """A right kernel for another problem, in the same memory."""
    return Mutant(
        f"write-{name}", wrong, lambda problem, arithmetic: results(problem, written(change(problem))), applies
    )


def to_slots(change: Callable[[Write], Ints]) -> Callable[[Write], Write]:
    """Tokens that have a slot go to another one."""

    def changed(problem: Write) -> Write:
        moved = change(problem) % problem.capacity
        return replace(problem, slots=np.where(problem.slots < 0, -1, moved))

    return changed


def last_for_none(problem: Write) -> Write:
    return replace(problem, slots=np.where(problem.slots < 0, problem.capacity - 1, problem.slots))


def first_for_none(problem: Write) -> Write:
    return replace(problem, slots=np.where(problem.slots < 0, 0, problem.slots))


def pages_turned(problem: Write) -> Ints:
    """Page and place in the page the other way round."""
    pages = problem.places["k_cache"].shape[0]
    return problem.slots // problem.block_size + problem.slots % problem.block_size * pages


def page_begun(problem: Write) -> Ints:
    return problem.slots // problem.block_size * problem.block_size


def pages_of_16_bits(problem: Write) -> Ints:
    block = problem.block_size
    return problem.slots // block % 65_536 * block + problem.slots % block


def with_tokens(problem: Write, change: Callable[[Array], Array]) -> Write:
    return replace(problem, k=change(problem.k), v=None if problem.v is None else change(problem.v))


def of_next(problem: Write) -> Write:
    return with_tokens(problem, lambda new: np.roll(new, -1, axis=0))


def in_order(problem: Write) -> Write:
    """Tokens without a slot are left out, and the others move up to the first slots given."""
    kept = problem.slots >= 0
    first = np.concatenate([np.flatnonzero(kept), np.flatnonzero(~kept)])
    slots = np.full_like(problem.slots, -1)
    slots[: kept.sum()] = problem.slots[kept]
    return replace(with_tokens(problem, lambda new: new[np.sort(first)]), slots=slots)


def heads_turned(problem: Write) -> Write:
    return with_tokens(problem, lambda new: new[:, ::-1])


def last_lost(problem: Write) -> Write:
    slots = problem.slots.copy()
    slots[np.flatnonzero(slots >= 0)[-1]] = -1
    return replace(problem, slots=slots)


def dense(problem: Write) -> Write:
    """The strides of the caches are not looked at."""

    def contiguous(place: Place) -> Place:
        *_, block, nheads, width = place.shape
        return replace(place, strides=(block * nheads * width, nheads * width, width, 1))

    return replace(problem, places={name: contiguous(place) for name, place in problem.places.items()})


def values_of_keys(problem: Write) -> Write:
    """The values go with the strides of the keys."""
    keys, values = (problem.places[name] for name in CACHES)
    return replace(problem, places={"k_cache": keys, "v_cache": replace(values, strides=keys.strides)})


def page_cleared(problem: Write, arithmetic: object) -> Results:
    """What else lies in a page that is written to is 0 afterwards."""
    cleared = before(problem).memories
    for place in problem.places.values():
        cache = place.view(list(cleared))
        cache[np.unique(problem.slots[problem.slots >= 0] // problem.block_size)] = 0.0
    return results(problem, written(replace(problem, memories=tuple(cleared))))


def nothing(problem: Write, arithmetic: object) -> Results:
    return results(problem, before(problem))


def keys_alone(problem: Write, arithmetic: object) -> Results:
    found = results(problem, written(problem))
    return {**found, "v_cache": results(problem, before(problem))["v_cache"]}


def writes(problem: Write) -> bool:
    return bool((problem.slots >= 0).any())


def several(problem: Write) -> bool:
    return int((problem.slots >= 0).sum()) > 1


def skips(problem: Write) -> bool:
    return bool((problem.slots < 0).any()) and problem.capacity > 0


def skips_between(problem: Write) -> bool:
    kept = np.flatnonzero(problem.slots >= 0)
    return len(kept) > 1 and kept[-1] >= len(kept)


def paged(problem: Write) -> bool:
    return several(problem) and problem.block_size > 1 and problem.capacity > problem.block_size


def strided(problem: Write) -> bool:
    return several(problem) and dense(problem).places != problem.places


def unlike(problem: Write) -> bool:
    """Whether the strides of values are others than those of keys, and within the memory theirs would do."""
    if problem.v is None:
        return False
    keys, values = (problem.places[name] for name in CACHES)
    fits = keys.strides[0] * (keys.shape[0] - 1) <= values.strides[0] * (values.shape[0] - 1)
    return several(problem) and keys.strides != values.strides and fits


def rest_of_pages(problem: Write) -> bool:
    return writes(problem) and problem.block_size > 1


def _right(problem: Write) -> dict[str, Array]:
    """All tokens at once."""
    after = before(problem)
    kept = problem.slots >= 0
    page, place = np.divmod(problem.slots[kept], problem.block_size)
    for name, scale, new in problem.parts:
        values = new[kept]
        if problem.storage is not None:
            scales = after.scales[scale]
            if scale in problem.writes:
                largest = np.abs(values.astype(np.float32)).max(-1 if scales.shape[2] > 1 else (-2, -1))
                own = np.where(largest > 0, largest / np.float32(STORAGES[problem.storage][1]), 1)
                scales[page, place] = own.reshape(len(values), -1)
            own = scales_of(scales, problem.places[name].shape[:3])[page, place]
            values = read(packed(quantised(values, own, problem.storage), problem.storage), problem.storage)
        problem.places[name].view(after.memories)[page, place] = values
    return results(problem, after)


def misquantise(name: str, wrong: str, quantise: Quantise, applies: Test) -> Mutant:
    """A right kernel but for how it makes a number."""
    return Mutant(
        f"write-{name}", wrong, lambda problem, arithmetic: results(problem, written(problem, quantise)), applies
    )


def misscale(name: str, wrong: str, rescale: Rescale, applies: Test) -> Mutant:
    """A right kernel but for the scale of a token."""
    return Mutant(
        f"write-{name}", wrong, lambda problem, arithmetic: results(problem, written(problem, rescale=rescale)), applies
    )


def scale_kept(problem: Write, arithmetic: object) -> Results:
    """The scales of tokens are made, and not written."""
    return results(problem, replace(written(problem), scales=dict(problem.scales)))


def scale_read(problem: Write, arithmetic: object) -> Results:
    """The scales of tokens are taken from where they should go."""
    after = before(problem)
    for name, scale, new in problem.parts:
        for token, slot in enumerate(problem.slots.tolist()):
            if slot >= 0:
                at = divmod(slot, problem.block_size)
                own = scales_of(after.scales[scale], problem.places[name].shape[:3])[at]
                codes = packed(quantised(new[token], own, str(problem.storage)), str(problem.storage))
                problem.places[name].view(after.memories)[at] = read(codes, str(problem.storage))
    return results(problem, after)


def scale_by_token(problem: Write, arithmetic: object) -> Results:
    """The scale of the i-th token goes to the i-th place."""
    after = written(problem)
    scales = before(problem).scales
    for name in scales:
        rows = scales[name].reshape(-1, scales[name].shape[2])
        rows[: len(problem.slots)] = after.scales[name].reshape(rows.shape)[problem.slots]
    return results(problem, replace(after, scales=scales))


def of_first_head(token: Array, heads: int, storage: str) -> Array:
    return scale_for(token[:1], 1, storage) * np.ones(heads)


def zero_for_zeros(token: Array, heads: int, storage: str) -> Array:
    scale = scale_for(token, heads, storage)
    return np.where(np.abs(token).max(-1 if heads > 1 else None) == 0, 0.0, scale)


def of_most_negative(token: Array, heads: int, storage: str) -> Array:
    """As if the integers reached -qmax - 1."""
    qmax = STORAGES[storage][1]
    return np.asarray(np.float32(scale_for(token, heads, storage) * qmax / (qmax + 1))).astype(np.float64)


def in_16_bits(token: Array, heads: int, storage: str) -> Array:
    return scale_for(token, heads, storage).astype(np.float16).astype(np.float64)


def scale_rolled(axis: int) -> Callable[[Write], Write]:
    """Each place has the scale of the one before it along an axis of the pool."""

    def changed(problem: Write) -> Write:
        pool = problem.places["k_cache"].shape[:3]
        return replace(
            problem, scales={name: np.roll(scales_of(scale, pool), 1, axis) for name, scale in problem.scales.items()}
        )

    return changed


def unclamped(x: Array, scale: Array, storage: str) -> Codes:
    """An integer wraps around."""
    whole = np.rint(x.astype(np.float32) / scale.astype(np.float32)[..., None]).astype(np.int64)
    wrapped: Codes = (whole % (16 if storage == "int4" else 256)).astype(np.uint8)
    return wrapped


def toward_zero(x: Array, scale: Array, storage: str) -> Codes:
    levels = x.astype(np.float32) / scale.astype(np.float32)[..., None]
    return encoded(np.trunc(levels.astype(np.float64)), storage)


def halved(x: Array, scale: Array, storage: str) -> Codes:
    """The scale is made for twice the largest number."""
    return quantised(x, scale / 2, storage)


def multiplied(x: Array, scale: Array, storage: str) -> Codes:
    return quantised(x, 1 / scale, storage)


def unscaled(x: Array, scale: Array, storage: str) -> Codes:
    return quantised(x, np.ones_like(scale), storage)


def as_storage(other: str) -> Quantise:
    """The bytes are those of another storage."""
    return lambda x, scale, storage: quantised(x, scale, other)


def nibbles_swapped(x: Array, scale: Array, storage: str) -> Codes:
    codes = quantised(x, scale, storage)
    return np.asarray(codes.reshape(-1, 2)[:, ::-1].reshape(codes.shape))


def writes_scales(problem: Write) -> bool:
    return several(problem) and len(problem.writes) > len(problem.places)


def scales_of_heads(problem: Write) -> bool:
    return writes_scales(problem) and problem.k.shape[1] > 1


def stores(*storages: str) -> Test:
    return lambda p: writes(p) and p.storage is not None and (not storages or p.storage in storages)


def scale_varies(axis: int) -> Test:
    """Whether a place that is written to would show it."""

    def test(problem: Write) -> bool:
        if not stores()(problem) or writes_scales(problem):
            return False
        kept = problem.slots[problem.slots >= 0]
        at = kept // problem.block_size, kept % problem.block_size
        pool = problem.places["k_cache"].shape[:3]
        moved = scale_rolled(axis)(problem)
        return any((scales_of(problem.scales[n], pool)[at] != moved.scales[n][at]).any() for n in moved.scales)

    return test


MUTANTS = (
    misread("last-for-none", "-1 is the last slot", last_for_none, skips),
    misread("first-for-none", "-1 is slot 0", first_for_none, skips),
    misread("slot+1", "every slot is one too far", to_slots(lambda p: p.slots + 1), paged),
    misread("page+1", "every page is one too far", to_slots(lambda p: p.slots + p.block_size), paged),
    misread("pages-turned", "page and place in the page are the other way round", to_slots(pages_turned), paged),
    misread("page-begun", "a token goes to the first place of its page", to_slots(page_begun), paged),
    misread("16-bits", "the number of a page is cut to 16 bits", to_slots(pages_of_16_bits),
            lambda p: writes(p) and p.places["k_cache"].shape[0] > 65_536),
    misread("of-next", "a slot gets the token after its own", of_next, several),
    misread("closed-up", "tokens without a slot are counted out, not passed over", in_order, skips_between),
    misread("heads-turned", "the heads of a token are stored the other way round", heads_turned,
            lambda p: writes(p) and p.k.shape[1] > 1),
    misread("last-lost", "the last token is not written", last_lost, writes),
    misread("as-contiguous", "the caches are written as if they were contiguous", dense, strided),
    misread("values-as-keys", "the values are written with the strides of the keys", values_of_keys, unlike),
    misread("scale-of-head", "a head has its neighbour's scale", scale_rolled(2), scale_varies(2)),
    misread("scale-of-block", "a token has the scale of the page before its own", scale_rolled(0), scale_varies(0)),
    Mutant("write-scale-kept", "the scale of a token is not written", scale_kept, writes_scales),
    Mutant("write-scale-read", "the scale of a token is the one that lies there", scale_read, writes_scales),
    Mutant("write-scale-by-token", "the scale of a token lies at its number, not at its slot", scale_by_token,
           writes_scales),
    misscale("scale-of-first-head", "all heads have the scale of the first", of_first_head, scales_of_heads),
    misscale("scale-zero", "the scale of zeros is 0", zero_for_zeros, writes_scales),
    misscale("scale-of-all", "the scale is made for one number more than there is", of_most_negative, writes_scales),
    misscale("scale-in-16-bits", "the scale is rounded to float16", in_16_bits, writes_scales),
    misquantise("scale-dropped", "numbers are stored as they are", unscaled, stores()),
    misquantise("scale-multiplied", "numbers are multiplied by the scale", multiplied, stores()),
    misquantise("scale-halved", "numbers are twice too large", halved, stores()),
    misquantise("not-cut-off", "an integer that is too large wraps around", unclamped,
                lambda p: stores("int8", "int4")(p) and not writes_scales(p)),
    misquantise("toward-zero", "numbers are cut to the integer below them", toward_zero, stores("int8", "int4")),
    misquantise("nibbles-swapped", "the even dimension is in the high nibble", nibbles_swapped, stores("int4")),
    misquantise("fnuz-as-fn", "e4m3fnuz is written as e4m3fn", as_storage("e4m3fn"), stores("e4m3fnuz")),
    misquantise("fn-as-fnuz", "e4m3fn is written as e4m3fnuz", as_storage("e4m3fnuz"), stores("e4m3fn")),
    Mutant("write-page-cleared", "the rest of a page is cleared", page_cleared, rest_of_pages),
    Mutant("write-nothing", "nothing is written", nothing, writes),
    Mutant("write-keys-alone", "the values are not written", keys_alone, lambda p: writes(p) and p.v is not None),
)  # fmt: skip
RIGHTS = (Right("write_kv: all tokens at once", CANONICAL, _right, lambda problem: True),)
