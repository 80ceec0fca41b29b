"""Paged storage in the orders that vendors' kernels want: declared with the memory, and converted.

In these a head lies in pieces of 16 bytes, of x = 16 / itemsize elements, so that no strides lead through it. int4 has
x bytes to a piece.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from xattn.errors import InvalidArgumentError

# "vllm": what vLLM's kernels on AMD take, "asm": what AMD's assembly takes, and CK.
Format = Literal["vllm", "asm"]
Of = Literal["k", "v"]


@dataclass(frozen=True, eq=False)
class FormattedCache:
    """Keys, or values, of a paged cache in a format: for `write_kv` and `paged_attention`, in place of k_cache or
    v_cache.

    memory: contiguous. Of keys in both formats (num_blocks, nheads_k, columns / x, block_size, x). Of values in "vllm"
        (num_blocks, nheads_k, columns, block_size), and in "asm" (num_blocks, nheads_k, block_size / x, columns, x).
    format: its name. of: "k" or "v".

    Raises InvalidArgumentError for memory that cannot be of that format.
    """

    memory: Tensor
    format: Format
    of: Of

    def __post_init__(self) -> None:
        for name, given, known in (("format", self.format, Format), ("of", self.of, Of)):
            if given not in get_args(known):
                raise InvalidArgumentError(name, repr(given), " or ".join(map(repr, get_args(known))))
        memory, x = self.memory, pieces(self.memory.dtype)
        flat = self.of == "v" and self.format == "vllm"
        if memory.dim() != (4 if flat else 5) or not memory.is_contiguous() or not (flat or memory.shape[4] == x):
            want = "(num_blocks, nheads_k, headdim, block_size)"
            if not flat:
                want = f"(num_blocks, nheads_k, {'headdim' if self.of == 'k' else 'block_size'} / {x}, "
                want += f"{'block_size' if self.of == 'k' else 'headdim'}, {x})"
            hint = f'Of (num_blocks, block_size, nheads_k, headdim): made(cache, "{self.format}", "{self.of}").'
            got = f"shape {tuple(memory.shape)}, strides {memory.stride()}"
            raise InvalidArgumentError("memory", got, f"{want}, contiguous", hint)

    @classmethod
    def made(cls, cache: Tensor, format: Format, of: Of) -> FormattedCache:
        """A copy of a cache (num_blocks, block_size, nheads_k, columns) in a format. columns must be a multiple of x,
        and so must block_size for values in "asm"."""
        x = pieces(cache.dtype)
        pieced = {("k", 3): "headdim", ("v", 1): "block_size"}
        for (what, dim), name in pieced.items():
            if of == what and (of == "k" or format == "asm") and cache.shape[dim] % x:
                raise InvalidArgumentError("cache", f"{name} {cache.shape[dim]}", f"a multiple of {x}, 16 bytes")
        if of == "k":
            memory = cache.unflatten(3, (-1, x)).permute(0, 2, 3, 1, 4)
        elif format == "vllm":
            memory = cache.permute(0, 2, 3, 1)
        else:
            memory = cache.unflatten(1, (-1, x)).permute(0, 3, 1, 4, 2)
        return cls(memory.contiguous(), format, of)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(num_blocks, block_size, nheads_k, columns)"""
        blocks, nheads, *rest = self.memory.shape
        if self.of == "k":
            return blocks, rest[1], nheads, rest[0] * rest[2]
        if self.format == "vllm":
            return blocks, rest[1], nheads, rest[0]
        return blocks, rest[0] * rest[2], nheads, rest[1]

    @property
    def dtype(self) -> torch.dtype:
        return self.memory.dtype

    @property
    def sized(self) -> Tensor:
        """The memory by the sizes of a cache, whose elements lie elsewhere: to look at sizes, dtype and device."""
        return self.memory.view(self.shape)

    def numbers(self) -> Tensor:
        """A copy, (num_blocks, block_size, nheads_k, columns)."""
        blocks, size = self.shape[:2]
        at = torch.arange(size, device=self.memory.device)
        return self.taken(torch.arange(blocks, device=at.device).unsqueeze(1), at)

    def taken(self, block: Tensor, place: Tensor) -> Tensor:
        """(..., nheads_k, columns): what lies at these blocks and places, which broadcast."""
        rows, index = self._rows(block, place)
        found = rows[index]
        return found.flatten(-2) if self.of == "k" else found

    def put(self, block: Tensor, place: Tensor, new: Tensor) -> None:
        """Write new (..., nheads_k, columns) to these blocks and places."""
        rows, index = self._rows(block, place)
        rows[index] = new.unflatten(-1, (-1, rows.shape[-1])) if self.of == "k" else new

    def as_bytes(self) -> FormattedCache:
        """The same memory as bytes, which torch can index on any device."""
        return FormattedCache(self.memory.view(torch.uint8), self.format, self.of) if self.dtype.itemsize == 1 else self

    def _rows(self, block: Tensor, place: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """A view that is indexed by places first, and the index of these."""
        if self.of == "k":
            return self.memory.permute(0, 3, 1, 2, 4), (block, place)
        if self.format == "vllm":
            return self.memory.permute(0, 3, 1, 2), (block, place)
        x = self.memory.shape[4]
        return self.memory.permute(0, 2, 4, 1, 3), (block, place // x, place % x)


def pieces(dtype: torch.dtype) -> int:
    """x: how many elements 16 bytes hold."""
    return 16 // dtype.itemsize


def declared(
    k_cache: Tensor | FormattedCache, v_cache: Tensor | FormattedCache | None
) -> tuple[Tensor, Any, tuple[Any, Any], Format | None]:
    """Of the caches of a call: tensors of their sizes, their memories, and the format of both, None of plain tensors.
    Raises InvalidArgumentError for formats that contradict each other."""
    if not isinstance(k_cache, FormattedCache) and not isinstance(v_cache, FormattedCache):
        return k_cache, v_cache, (k_cache, v_cache), None
    for name, cache in (("k", k_cache), ("v", v_cache)):
        if not isinstance(cache, FormattedCache) or cache.of != name:
            got = f"one of {cache.of}" if isinstance(cache, FormattedCache) else type(cache).__name__
            want = f'a FormattedCache of "{name}", as the other cache has a format'
            raise InvalidArgumentError(f"{name}_cache", got, want)
    assert isinstance(k_cache, FormattedCache)
    assert isinstance(v_cache, FormattedCache)
    if k_cache.format != v_cache.format:
        want = f'"{k_cache.format}", the format of k_cache'
        raise InvalidArgumentError("v_cache", f'format "{v_cache.format}"', want)
    return k_cache.sized, v_cache.sized, (k_cache.memory, v_cache.memory), k_cache.format
