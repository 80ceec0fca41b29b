"""The values of one call of write_kv, and from a case to them: the same bits on every machine."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from xattn_conformance.array import Array
from xattn_conformance.case import Case
from xattn_conformance.inputs.draw import Draw
from xattn_conformance.inputs.formats import encode, round_to

STREAMS = {"k": 0, "v": 1, "slots": 2, "memory.0": 3, "memory.1": 4}
CACHES = ("k_cache", "v_cache")

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

    k: (tokens, nheads_k, headdim), v: (tokens, nheads_k, headdim_v). slots: (tokens,). memories: what the caches are
    views of, flat. places: of "k_cache" and "v_cache", (num_blocks, block_size, nheads_k, headdim or headdim_v).
    """

    dtype: str
    k: Array
    v: Array
    slots: Ints
    memories: tuple[Array, ...]
    places: Mapping[str, Place]

    @property
    def block_size(self) -> int:
        return self.places["k_cache"].shape[1]

    @property
    def capacity(self) -> int:
        return self.places["k_cache"].shape[0] * self.block_size


def written(problem: Write) -> list[Array]:
    """The memories after the call: one token after the other."""
    memories = [memory.copy() for memory in problem.memories]
    for name, new in zip(CACHES, (problem.k, problem.v), strict=True):
        cache = problem.places[name].view(memories)
        for token, slot in enumerate(problem.slots.tolist()):
            if slot >= 0:
                cache[slot // problem.block_size, slot % problem.block_size] = new[token]
    return memories


def results(problem: Write, memories: list[Array]) -> dict[str, Array]:
    """What a case looks at, laid out for the comparison: each cache as (num_blocks, nheads_k, block_size, columns), and
    "around", (1, 1, 1, elements), what lies beside them."""
    around = [np.ones(memory.shape, bool) for memory in memories]
    for place in problem.places.values():
        place.view(list(around))[...] = False
    found = {name: place.view(list(memories)).transpose(0, 2, 1, 3).copy() for name, place in problem.places.items()}
    beside = np.concatenate([memory[there] for memory, there in zip(memories, around, strict=True)])
    return {**found, "around": beside[None, None, None]}


def make(case: Case) -> Write:
    """Raises KeyError for an unknown recipe."""
    size, options, draw = case.shape, case.options, Draw(case.seed, STREAMS)
    tokens, nheads, block = size["seqlen_q"], size["nheads"], options["block"]
    widths = (size["headdim"], size["headdim_v"])
    sizes, places = _placed(options["memory"], (size["seqlen_k"] // block, block, nheads), widths)
    slots = _slots(options["slots"], tokens, size["seqlen_k"], draw)
    k, v = (draw.normal(name, (tokens, nheads, width)) for name, width in zip("kv", widths, strict=True))
    for new in (k, v):
        new[slots < 0] = np.nan
    return Write(
        dtype=case.dtype,
        k=round_to(k, case.dtype),
        v=round_to(v, case.dtype),
        slots=slots,
        memories=tuple(round_to(draw.normal(f"memory.{i}", (n,)), case.dtype) for i, n in enumerate(sizes)),
        places=places,
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
    recipe: str, pages: tuple[int, int, int], widths: tuple[int, int]
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
    floats = {"k": problem.k, "v": problem.v}
    floats |= {f"memory.{i}": memory for i, memory in enumerate(problem.memories)}
    return {"slots": problem.slots, **{name: encode(values, problem.dtype) for name, values in floats.items()}}


def digest(problem: Write) -> str:
    """sha256, in hex, over the name, dtype, shape and little-endian bits of every input."""
    running = hashlib.sha256()
    for name, values in sorted(bits(problem).items()):
        running.update(f"{name} {problem.dtype} {'x'.join(map(str, values.shape))}\n".encode())
        running.update(values.astype(values.dtype.newbyteorder("<")).tobytes())
    return running.hexdigest()
