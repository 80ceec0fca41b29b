"""The values of one call of write_kv, and from a case to them: the same bits on every machine."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from xattn_conformance.array import Array
from xattn_conformance.case import Case
from xattn_conformance.inputs.draw import Draw
from xattn_conformance.inputs.formats import encode, round_to
from xattn_conformance.inputs.quantised import (
    STORAGES,
    WRITTEN,
    Quantise,
    Rescale,
    codes_of,
    drawn_cache,
    drawn_scale,
    quantised,
    scale_for,
    scale_shape,
    store,
    with_zeros,
)

STREAMS = {"k": 0, "v": 1, "slots": 2, "memory.0": 3, "memory.1": 4, "k_scale": 5, "v_scale": 6}
CACHES = ("k_cache", "v_cache")
SCALES = ("k_scale", "v_scale")

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Place:
    """Where a cache lies in a memory: which one, and there its strides and its first element."""

    memory: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    start: int = 0

    def view(self, memories: list[NDArray[Any]]) -> NDArray[Any]:
        memory = memories[self.memory]
        return as_strided(memory[self.start :], self.shape, [stride * memory.itemsize for stride in self.strides])


@dataclass(frozen=True)
class Write:
    """A call in the contract's words. Pure data, in float64, held exactly by `dtype`.

    k: (tokens, nheads_k, headdim), v: (tokens, nheads_k, headdim_v), or None of a latent cache. slots: (tokens,).
    memories: what the caches are views of, flat: of quantised ones the numbers that their dtype reads, bytes of int4.
    places: of "k_cache" and, where there are values, "v_cache", (num_blocks, block_size, nheads_k, headdim or
    headdim_v, of int4 half of it). storage: of quantised caches. scales: of "k_scale" and "v_scale" there, float32:
    those of tokens are written with them.
    """

    dtype: str
    k: Array
    v: Array | None
    slots: Ints
    memories: tuple[Array, ...]
    places: Mapping[str, Place]
    storage: str | None = None
    scales: Mapping[str, Array] = field(default_factory=dict)

    @property
    def cache_dtype(self) -> str:
        """torch's name."""
        return self.dtype if self.storage is None else STORAGES[self.storage][0]

    @property
    def parts(self) -> list[tuple[str, str, Array]]:
        """Of the keys, and of the values where there are some: the names of their cache and scale, and the new ones."""
        named = zip(CACHES, SCALES, (self.k, self.v), strict=True)
        return [(cache, scale, new) for cache, scale, new in named if new is not None]

    @property
    def writes(self) -> tuple[str, ...]:
        """Names of the tensors that the call changes."""
        return tuple(self.places) + tuple(name for name, scale in self.scales.items() if scale.ndim == 3)

    @property
    def block_size(self) -> int:
        return self.places["k_cache"].shape[1]

    @property
    def capacity(self) -> int:
        return self.places["k_cache"].shape[0] * self.block_size


@dataclass(frozen=True)
class After:
    """The memories of a problem after the call, and its scales."""

    memories: list[Array]
    scales: dict[str, Array]


def before(problem: Write) -> After:
    """Copies to write to."""
    scales = {name: scale.copy() for name, scale in problem.scales.items()}
    return After([memory.copy() for memory in problem.memories], scales)


def written(problem: Write, quantise: Quantise = quantised, rescale: Rescale = scale_for) -> After:
    """After the call: one token after the other."""
    after = before(problem)
    for name, scale, new in problem.parts:
        cache = problem.places[name].view(after.memories)
        if problem.storage is not None:
            store(cache, after.scales[scale], new, problem.slots, problem.storage, quantise, rescale)
            continue
        for token, slot in enumerate(problem.slots.tolist()):
            if slot >= 0:
                cache[divmod(slot, problem.block_size)] = new[token]
    return after


def results(problem: Write, after: After) -> dict[str, Array]:
    """What a case looks at, laid out for the comparison: each cache as (num_blocks, nheads_k, block_size, columns),
    "around", (1, 1, 1, elements), what lies beside them, and scales that are written as caches of one column."""
    memories = after.memories
    around = [np.ones(memory.shape, bool) for memory in memories]
    for place in problem.places.values():
        place.view(list(around))[...] = False
    found = {name: place.view(list(memories)).transpose(0, 2, 1, 3).copy() for name, place in problem.places.items()}
    beside = np.concatenate([memory[there] for memory, there in zip(memories, around, strict=True)])
    scales = {name: after.scales[name].transpose(0, 2, 1)[..., None] for name in problem.writes if name in SCALES}
    return {**found, **scales, "around": beside[None, None, None]}


def make(case: Case) -> Write:
    """Raises KeyError for an unknown recipe."""
    size, options, draw = case.shape, case.options, Draw(case.seed, STREAMS)
    tokens, nheads, block = size["seqlen_q"], size["nheads"], options["block"]
    widths, pages = (size["headdim"], size["headdim_v"]), (size["seqlen_k"] // block, block, nheads)
    storage = options.get("storage")
    sizes, places = _placed(options["memory"], pages, [width // (2 if storage == "int4" else 1) for width in widths])
    slots = _slots(options["slots"], tokens, size["seqlen_k"], draw)

    def tokens_of(name: str, width: int) -> Array:
        new = draw.normal(name, (tokens, nheads, width))
        if options.get("scale_of") in WRITTEN:
            new = with_zeros(new, slots)
        new[slots < 0] = np.nan
        return round_to(new, case.dtype)

    def memory(name: str, elements: int) -> Array:
        """What lies there before."""
        if storage is not None:
            return drawn_cache(draw, name, (elements,), storage)
        return round_to(draw.normal(name, (elements,)), case.dtype)

    latent = bool(options.get("latent"))
    if latent:  # in memory of its own
        sizes, places = sizes[:1], {"k_cache": places["k_cache"]}
    scales = () if storage is None else SCALES[:1] if latent else SCALES
    return Write(
        dtype=case.dtype,
        k=tokens_of("k", widths[0]),
        v=None if latent else tokens_of("v", widths[1]),
        slots=slots,
        memories=tuple(memory(f"memory.{i}", n) for i, n in enumerate(sizes)),
        places=places,
        storage=storage,
        scales={
            name: drawn_scale(draw, name, scale_shape(options["scale_of"], pages), str(storage)) for name in scales
        },
    )


def _slots(recipe: str, tokens: int, capacity: int, draw: Draw) -> Ints:
    if recipe == "none" or not capacity:
        return np.full(tokens, -1)
    order = np.argsort(draw.integers("slots", (capacity,)), kind="stable")
    if recipe == "chunk":
        return capacity // 3 + np.arange(tokens)
    if recipe == "all":
        return order[:tokens]
    if recipe == "far":
        return capacity - 1 - 3 * np.arange(tokens)
    # Beside -1 the last slot is nobody's, so that what goes there shows; elsewhere it is the last token's.
    others, token = order[order != capacity - 1], np.arange(tokens)
    if recipe == "scattered":
        return np.append(others[: tokens - 1], capacity - 1)
    return np.where({"holes": token % 3 == 0, "tail": token >= tokens - 4}[recipe], -1, others[:tokens])


def _placed(
    recipe: str, pages: tuple[int, int, int], widths: Sequence[int]
) -> tuple[tuple[int, ...], dict[str, Place]]:
    """How many elements each memory has, and where the caches lie in there."""
    blocks, block, nheads = pages
    rows = [nheads * width for width in widths]
    if recipe == "apart":
        sizes = tuple(blocks * block * row for row in rows)
        strides = [(block * row, row, width, 1) for row, width in zip(rows, widths, strict=True)]
        starts, memories = [0, 0], [0, 1]
    elif recipe == "one":
        page = block * sum(rows)
        sizes = (blocks * page,)
        strides = [(page, row, width, 1) for row, width in zip(rows, widths, strict=True)]
        starts, memories = [0, block * rows[0]], [0, 0]
    elif recipe == "pairs":
        token = sum(rows)
        sizes = (blocks * block * token,)
        strides = [(block * token, token, width, 1) for width in widths]
        starts, memories = [0, rows[0]], [0, 0]
    else:
        # A head and a token more than there are, and something before the first page.
        heads = [(block + 1) * width for width in widths]
        sizes = tuple(7 + blocks * (nheads + 1) * head for head in heads)
        strides = [((nheads + 1) * head, width, head, 1) for head, width in zip(heads, widths, strict=True)]
        starts, memories = [7, 7], [0, 1]
    shapes = [(*pages, width) for width in widths]
    placed = map(Place, memories, shapes, strides, starts)
    return sizes, dict(zip(CACHES, placed, strict=True))


def bits(problem: Write) -> dict[str, NDArray[Any]]:
    """Every input by name: floats as the codes of their format."""
    floats = {"k": problem.k} if problem.v is None else {"k": problem.k, "v": problem.v}
    memories = {f"memory.{i}": memory for i, memory in enumerate(problem.memories)}
    found: dict[str, NDArray[Any]] = {"slots": problem.slots}
    if problem.storage is None:
        floats |= memories
    else:
        found |= {name: codes_of(memory, problem.storage) for name, memory in memories.items()}
        found |= {name: encode(scale, "float32") for name, scale in problem.scales.items()}
    return {**found, **{name: encode(values, problem.dtype) for name, values in floats.items()}}


def digest(problem: Write) -> str:
    """sha256, in hex, over the name, dtype, shape and little-endian bits of every input."""
    running = hashlib.sha256()
    for name, values in sorted(bits(problem).items()):
        running.update(f"{name} {problem.dtype} {'x'.join(map(str, values.shape))}\n".encode())
        running.update(values.astype(values.dtype.newbyteorder("<")).tobytes())
    return running.hexdigest()
