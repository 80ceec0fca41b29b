"""What quantised caches hold: the numbers of each storage by its definition, and the nearest of them. No casts."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
from numpy.typing import NDArray

from xattn_conformance.array import Array
from xattn_conformance.inputs.draw import Draw

Codes = NDArray[np.uint8]
# (x, scale, storage) -> codes one to a number, and (token, heads, storage) -> the scale of a token.
Quantise = Callable[[Array, Array, str], Codes]
Rescale = Callable[[Array, int, str], Array]

# By the storage's name: the dtype that torch has it in, and the largest number. int4 has two numbers in a byte.
STORAGES = {
    "int8": ("int8", 127.0),
    "int4": ("uint8", 7.0),
    "e4m3fn": ("float8_e4m3fn", 448.0),
    "e4m3fnuz": ("float8_e4m3fnuz", 240.0),
}
# What has a scale of its own, and what of (num_blocks, block_size, nheads_k) its scale keeps; of "token" one of 1.
GRANULARITIES = ("tensor", "head", "block_head", "token", "token_head")
# What has a scale of its own that is written with it.
WRITTEN = GRANULARITIES[-2:]


def scale_shape(granularity: str, pool: tuple[int, int, int]) -> tuple[int, ...]:
    """pool: (num_blocks, block_size, nheads_k)."""
    blocks, block, nheads = pool
    shapes = ((), (nheads,), (blocks, nheads), (blocks, block, 1), (blocks, block, nheads))
    return dict(zip(GRANULARITIES, shapes, strict=True))[granularity]


def scales_of(scale: Array, pool: tuple[int, ...]) -> Array:
    """(num_blocks, block_size, nheads_k): the scale of every head of every place."""
    if scale.ndim == 2:
        scale = scale[:, None]
    return np.broadcast_to(scale, pool)


@cache
def numbers(storage: str) -> Array:
    """The number behind each byte, of int4 behind each nibble: (256,) or (16,). NaN where there is none."""
    code = np.arange(16 if storage == "int4" else 256)
    if storage.startswith("int"):
        return np.where(code < len(code) // 2, code, code - len(code)).astype(np.float64)
    sign, exponent, fraction = np.where(code & 128, -1.0, 1.0), code >> 3 & 15, code & 7
    bias = 7 if storage == "e4m3fn" else 8
    found = sign * np.where(exponent == 0, fraction, 8 + fraction) * 2.0 ** (np.maximum(exponent, 1) - bias - 3)
    found[(code & 127) == 127 if storage == "e4m3fn" else code == 128] = np.nan
    return np.asarray(found)


def encoded(levels: Array, storage: str) -> Codes:
    """The code of the number that is nearest, the even one of two, cut off at the largest: (..., headdim), int4 too."""
    qmax = STORAGES[storage][1]
    known = numbers(storage)
    # Zero once: of two zeros the positive one.
    order = [code for code in np.argsort(known, kind="stable") if abs(known[code]) <= qmax]
    order = [code for code in order if known[code] != 0 or code == 0]
    there, codes = known[order], np.array(order)
    x = np.clip(levels, -qmax, qmax)
    above = np.clip(np.searchsorted(there, x), 1, len(there) - 1)
    down, up = x - there[above - 1], there[above] - x
    takes_up = (up < down) | ((up == down) & (codes[above] % 2 == 0))
    return codes[np.where(takes_up, above, above - 1)].astype(np.uint8)


def decoded(codes: Codes, storage: str) -> Array:
    """(..., headdim), of codes one to a number."""
    return numbers(storage)[codes]


def packed(codes: Codes, storage: str) -> Codes:
    """As the cache has them: of int4 two to a byte, the even dimension in the low nibble."""
    if storage != "int4":
        return codes
    bytes_of_two: Codes = (codes[..., ::2] | codes[..., 1::2] << np.uint8(4)).astype(np.uint8)
    return bytes_of_two


def quantised(x: Array, scale: Array, storage: str) -> Codes:
    """x / scale, divided in float32, as codes one to a number. scale: as x without its last dimension."""
    with np.errstate(invalid="ignore"):
        levels = x.astype(np.float32) / scale.astype(np.float32)[..., None]
    return encoded(levels.astype(np.float64), storage)


def scale_for(token: Array, heads: int, storage: str) -> Array:
    """(heads,), float32, of a token (nheads_k, headdim): the least that cuts nothing off, 1 of zeros. One of all heads
    where heads is 1."""
    largest = np.abs(token.astype(np.float32)).max(-1)
    if heads == 1:
        largest = largest.max(keepdims=True)
    scale = largest / np.float32(STORAGES[storage][1])
    return np.where(largest == 0, 1.0, scale.astype(np.float64))


def read(cache: Codes, storage: str) -> Array:
    """What a tensor of the cache's dtype says of its elements: numbers, and of int4 its bytes."""
    return cache.astype(np.float64) if storage == "int4" else decoded(cache, storage)


def codes_of(cache: Array, storage: str) -> Codes:
    """The bytes that `read` has as these elements."""
    return cache.astype(np.uint8) if storage == "int4" else encoded(cache, storage)


def store(
    cache: Array,
    scale: Array,
    new: Array,
    slots: NDArray[np.int64],
    storage: str,
    quantise: Quantise = quantised,
    rescale: Rescale = scale_for,
) -> None:
    """Write new tokens, (tokens, nheads_k, headdim), one after the other into slots of a cache, (num_blocks,
    block_size, nheads_k, columns) as `read` has it, and their scales where tokens have them."""
    for token, slot in enumerate(slots.tolist()):
        if slot >= 0:
            at = divmod(slot, cache.shape[1])
            if scale.ndim == 3:
                scale[at] = rescale(new[token], scale.shape[2], storage)
            own = scales_of(scale, cache.shape[:3])[at]
            cache[at] = read(packed(quantise(new[token], own, storage), storage), storage)


def drawn_cache(draw: Draw, name: str, shape: tuple[int, ...], storage: str) -> Array:
    """What lies there before a call that writes: any bytes that are numbers, as `read` has them."""
    there = read((draw.integers(name, shape) % 256).astype(np.uint8), storage)
    return there if storage == "int4" else np.maximum(np.nan_to_num(there, nan=1.0), -STORAGES[storage][1])


def drawn_scale(draw: Draw, name: str, shape: tuple[int, ...], storage: str) -> Array:
    """Such that numbers beyond 2.5 to 5 are cut off."""
    steps = 1.0 + draw.integers(name, shape) % 8 / 8
    return np.asarray(np.float32(steps * 2.5 / STORAGES[storage][1])).astype(np.float64)


def with_zeros(new: Array, slots: NDArray[np.int64]) -> Array:
    """The new tokens, of which one that is written is all zeros, and the next one has a head of them."""
    first, second = np.flatnonzero(slots >= 0)[:2]
    found: Array = new.copy()
    found[first] = found[second, -1] = 0.0
    return found
