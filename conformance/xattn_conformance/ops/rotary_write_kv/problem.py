"""The values of one call of rotary_write_kv, and from a case to them: the same bits on every machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from xattn_conformance.array import Array
from xattn_conformance.case import Case
from xattn_conformance.inputs.draw import Draw
from xattn_conformance.inputs.formats import round_to
from xattn_conformance.inputs.quantised import (
    STORAGES,
    WRITTEN,
    codes_of,
    drawn_cache,
    drawn_scale,
    scale_shape,
    store,
    with_zeros,
)
from xattn_conformance.ops import rotation
from xattn_conformance.ops.sequences import Held, Ints
from xattn_conformance.tolerance.expected import Expected

STREAMS = {"q": 0, "k": 1, "v": 2, "slots": 3, "k_cache": 4, "v_cache": 5, "angles": 6, "k_scale": 7, "v_scale": 8}
SCALES = ("k_scale", "v_scale")

# What becomes of x, (tokens, heads, width).
Turn = Callable[[Array], Expected]


@dataclass(frozen=True)
class RotaryWrite:
    """A call in the contract's words. Pure data, in float64, held exactly by `dtype`, cos and sin by float32.

    q: (tokens, nheads, headdim_q), k: (tokens, nheads_k, headdim), v: (tokens, nheads_k, headdim_v) or None. cos, sin:
    (tokens, rotary_dim / 2). k_cache, v_cache: (num_blocks, block_size, nheads_k, ...), as they are before. storage: of
    quantised caches, which are here as the numbers that their dtype reads. scales: of "k_scale" and "v_scale" there,
    float32, those of tokens as they are before.
    """

    dtype: str
    q: Array
    k: Array
    v: Array | None
    cos: Array
    sin: Array
    k_cache: Array
    v_cache: Array | None
    slots: Ints
    interleaved: bool = False
    storage: str | None = None
    scales: Mapping[str, Array] = field(default_factory=dict)

    @property
    def tensors(self) -> Held:
        """The arrays that are there by name, each with the format that holds it."""
        formats = dict.fromkeys(("q", "k", "v", "k_cache", "v_cache"), self.dtype)
        formats |= {"cos": "float32", "sin": "float32", "slots": "int64"}
        given = {name: (getattr(self, name), kind) for name, kind in formats.items()}
        if self.storage is not None:
            for name in ("k_cache", "v_cache"):
                given[name] = codes_of(getattr(self, name), self.storage), STORAGES[self.storage][0]
            given |= {name: (scale, "float32") for name, scale in self.scales.items()}
        return {name: (values, kind) for name, (values, kind) in given.items() if values is not None}

    def turned(self, x: Array) -> Expected:
        """x as the contract rotates it: of a latent call its last dimensions, else its first."""
        width = 2 * self.cos.shape[1]
        first = x.shape[2] - width if self.v is None else 0
        found = rotation.expected(x[..., first:], self.cos, self.sin, self.interleaved, self.dtype)
        kept = x[..., :first]
        return Expected(
            np.concatenate([kept, found.value], axis=2), np.concatenate([np.zeros_like(kept), found.sigma], axis=2)
        )


def results(problem: RotaryWrite, q: Expected, k: Expected, v: Array | None) -> dict[str, Expected]:
    """What a case looks at, from what q, k and v came to, laid out for the comparison: heads before rows. Scales that
    are written are caches of one column."""
    found = {"out": Expected(_heads(q.value[None]), _heads(q.sigma[None]))}
    if problem.storage is not None:
        for name, cache, new in (("k", problem.k_cache, k.value), ("v", problem.v_cache, v)):
            assert cache is not None
            assert new is not None
            after, scale = cache.copy(), problem.scales[f"{name}_scale"].copy()
            store(after, scale, new, problem.slots, problem.storage)
            found[f"{name}_cache"] = _exact(after)
            if scale.ndim == 3:
                found[f"{name}_scale"] = _exact(scale[..., None])
    else:
        found["k_cache"] = _written(problem, problem.k_cache, k)
        if v is not None and problem.v_cache is not None:
            found["v_cache"] = _written(problem, problem.v_cache, Expected(v, np.zeros_like(v)))
    nothing = np.zeros((1, 1, 1, 0))  # lies beside the caches
    return {**found, "around": Expected(nothing, nothing)}


def _written(problem: RotaryWrite, cache: Array, new: Expected) -> Expected:
    value, sigma = cache.copy(), np.zeros_like(cache)
    kept = problem.slots >= 0
    page, place = np.divmod(problem.slots[kept], cache.shape[1])
    value[page, place], sigma[page, place] = new.value[kept], new.sigma[kept]
    return Expected(_heads(value), _heads(sigma))


def _exact(x: Array) -> Expected:
    return Expected(_heads(x), np.zeros_like(_heads(x)))


def _heads(x: Array) -> Array:
    """(batch, rows, heads, columns) as (batch, heads, rows, columns)."""
    return np.swapaxes(x, 1, 2)


def make(case: Case) -> RotaryWrite:
    size, options, draw = case.shape, case.options, Draw(case.seed, STREAMS)
    tokens, slots, block = size["seqlen_q"], size["seqlen_k"], options["block"]
    latent = bool(options.get("latent"))
    pool = (slots // block, block, size["nheads_k"])
    angles = 16.0 * draw.normal("angles", (tokens, options["rotary"] // 2))
    storage = options.get("storage")
    # What is stored must not follow from the last bit of a key. Of one that doubles in part the largest number changes.
    quarter = (np.arange(tokens) % 4 == 3)[:, None] | (storage is not None)
    turns = draw.integers("angles", angles.shape)
    length = 1.0 + (turns // 4 % 2) * (storage is not None)
    cos = np.where(quarter, length * np.array([1.0, 0.0, -1.0, 0.0])[turns % 4], np.cos(angles))
    sin = np.where(quarter, length * np.array([0.0, 1.0, 0.0, -1.0])[turns % 4], np.sin(angles))
    at = _slots(options["slots"], tokens, slots, draw)

    def of(name: str, shape: tuple[int, ...]) -> Array:
        return round_to(draw.normal(name, shape), case.dtype)

    def new(name: str, shape: tuple[int, ...]) -> Array:
        made = of(name, shape)
        return with_zeros(made, at) if options.get("scale_of") in WRITTEN else made

    def before(name: str, shape: tuple[int, ...]) -> Array:
        return of(name, shape) if storage is None else drawn_cache(draw, name, shape, storage)

    values = (tokens, size["nheads_k"], size["headdim_v"])
    return RotaryWrite(
        dtype=case.dtype,
        q=of("q", (tokens, size["nheads"], options.get("queries", size["headdim"]))),
        k=new("k", (tokens, size["nheads_k"], size["headdim"])),
        v=None if latent else new("v", values),
        # Coarse, so that no machine's cosine is another one.
        cos=np.round(cos * 2.0**12) / 2.0**12,
        sin=np.round(sin * 2.0**12) / 2.0**12,
        k_cache=before("k_cache", (*pool, size["headdim"])),
        v_cache=None if latent else before("v_cache", (*pool, size["headdim_v"])),
        slots=at,
        interleaved=bool(options.get("interleaved")),
        storage=storage,
        scales={}
        if storage is None
        else {name: drawn_scale(draw, name, scale_shape(options["scale_of"], pool), storage) for name in SCALES},
    )


def _slots(recipe: str, tokens: int, capacity: int, draw: Draw) -> Ints:
    if recipe == "none" or not capacity:
        return np.full(tokens, -1)
    order: Ints = np.argsort(draw.integers("slots", (capacity,)), kind="stable")[:tokens]
    return order if recipe == "scattered" else np.where(np.arange(tokens) % 3 == 0, -1, order)
