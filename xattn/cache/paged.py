"""A paged cache of all layers: sequences that grow, share their beginnings and end."""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import xattn
from xattn.cache.sizes import OF_PAGES, ScaleOf, Scales, check_scale_of, check_sizes, scale_shape
from xattn.errors import InvalidArgumentError
from xattn.plugin.formats import Format, FormattedCache, Of
from xattn.plugin.quantised import QMAX, columns


@dataclass
class _Sequence:
    pages: list[int] = field(default_factory=list)
    length: int = 0


class PagedKVCache:
    """Pages of keys and values, and the table of each sequence, which the caller names by anything hashable.

    k, v: of each layer (num_blocks, block_size, nheads_k, headdim or headdim_v), for `write_kv` and `paged_attention`.
    A page is cleared in all layers when it is handed out: what no query sees is finite as long as what is written is.

    Quantised with dtype float8_e4m3fn, float8_e4m3fnuz, int8, or uint8 for int4, which has two numbers to a byte of k
    and v and an even headdim. k_scale, v_scale: of each layer, float32; None otherwise. scale_of says what has a scale
    of its own: "token_head" (num_blocks, block_size, nheads_k) and "token" (..., 1), which `write` sets by what it
    writes; "block_head" (num_blocks, nheads_k), "head" (nheads_k,) and "tensor" (), all 1, for the caller to set before
    anything is written.

    format: of the memory, for kernels that want it: k and v are then each a `FormattedCache`, and scales of tokens lie
    head by head.

    Every method that fails raises InvalidArgumentError, which names the sequence, and leaves all as it was.
    """

    def __init__(
        self,
        num_blocks: int,
        block_size: int,
        nheads_k: int,
        headdim: int,
        headdim_v: int | None = None,
        *,
        num_layers: int = 1,
        dtype: torch.dtype = torch.float32,
        scale_of: ScaleOf = "token_head",
        format: Format | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        check_sizes(
            dtype, num_blocks=num_blocks, block_size=block_size, nheads_k=nheads_k, headdim=headdim,
            headdim_v=headdim_v, num_layers=num_layers,
        )  # fmt: skip
        check_scale_of(scale_of)

        def pool(size: int, of: Of) -> list[Any]:
            shape = (num_blocks, block_size, nheads_k, columns(size, dtype))
            pages = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(num_layers)]
            return pages if format is None else [FormattedCache.made(each, format, of) for each in pages]

        def scales(pages: list[Any]) -> list[Tensor] | None:
            if dtype not in QMAX:
                return None
            shape = scale_shape(scale_of, pages[0])
            if format is None or len(shape) < 3:
                return [torch.ones(shape, device=device) for _ in pages]
            return [torch.ones(shape[0], shape[2], shape[1], device=device).transpose(1, 2) for _ in pages]

        self.k, self.v = pool(headdim, "k"), pool(headdim if headdim_v is None else headdim_v, "v")
        self.scale_of, self.k_scale, self.v_scale = scale_of, scales(self.k), scales(self.v)
        self.num_blocks, self.block_size = num_blocks, block_size
        self._free = list(range(num_blocks - 1, -1, -1))
        self._users = [0] * num_blocks
        self._sequences: dict[Hashable, _Sequence] = {}

    @property
    def free_blocks(self) -> int:
        return len(self._free)

    def length(self, sequence: Hashable) -> int:
        """How many keys it has."""
        return self._of(sequence).length

    def pages(self, sequence: Hashable) -> list[int]:
        """Its row of a block_table."""
        return list(self._of(sequence).pages)

    def allocate(self, sequence: Hashable) -> None:
        """Begin a sequence, without keys."""
        self._check_new(sequence)
        self._sequences[sequence] = _Sequence()

    def append(self, sequence: Hashable, tokens: int) -> list[int]:
        """Room for so many more keys: their slots, for `write_kv`. A last page that is shared and partly filled is
        copied first."""
        found, size = self._of(sequence), self.block_size
        if not isinstance(tokens, int) or tokens < 0:
            raise InvalidArgumentError("tokens", repr(tokens), "an int >= 0")
        new = -(-(found.length + tokens) // size) - len(found.pages)
        copied = tokens > 0 and found.length % size > 0 and self._users[found.pages[-1]] > 1
        if new + copied > len(self._free):
            got = f"{tokens} tokens after {found.length} of sequence {sequence!r}, which take {new + copied} blocks"
            raise InvalidArgumentError(
                "tokens", got, f"at most the {len(self._free)} that are free of {self.num_blocks}"
            )
        if copied:
            shared, own = found.pages[-1], self._take()
            for pool in (*self._memories, *self._page_scales()):
                pool[own] = pool[shared]
            self._users[shared] -= 1
            found.pages[-1] = own
        found.pages += [self._take() for _ in range(new)]
        places = range(found.length, found.length + tokens)
        found.length += tokens
        return [found.pages[j // size] * size + j % size for j in places]

    def write(self, layer: int, k: Tensor, v: Tensor, slots: Tensor) -> None:
        """`write_kv` into a layer, of quantised ones beside its scales.

        k, v: (tokens, nheads_k, headdim or headdim_v). slots: (tokens,) int64, as `append` gives them, -1 for none.
        """
        xattn.write_kv(k, v, self.k[layer], self.v[layer], slots, **self.scales(layer))

    def scales(self, layer: int) -> Scales:
        """k_scale and v_scale of a layer, as keywords of `write_kv` and `paged_attention`; none of what is not
        quantised."""
        if self.k_scale is None or self.v_scale is None:
            return {}
        return {"k_scale": self.k_scale[layer], "v_scale": self.v_scale[layer]}

    def fork(self, sequence: Hashable, other: Hashable, length: int | None = None) -> None:
        """Begin `other` with the first `length` keys of a sequence, all by default, in the same pages."""
        found = self._of(sequence)
        self._check_new(other)
        length = found.length if length is None else length
        if not 0 <= length <= found.length:
            raise InvalidArgumentError("length", str(length), f"0 to {found.length}, the keys of sequence {sequence!r}")
        pages = found.pages[: -(-length // self.block_size)]
        for page in pages:
            self._users[page] += 1
        self._sequences[other] = _Sequence(pages, length)

    def free(self, sequence: Hashable) -> None:
        """End a sequence. Its pages are free once no other has them."""
        for page in self._of(sequence).pages:
            self._users[page] -= 1
            if self._users[page] == 0:
                self._free.append(page)
        del self._sequences[sequence]

    def lists(
        self, sequences: Sequence[Hashable], queries: Sequence[int] | None = None
    ) -> tuple[list[list[int]], list[int], list[int] | None]:
        """block_table, seqlens_k and cu_seqlens_q of a step, for `PagedBatch.update_`. queries: how many each has; None
        is one."""
        found = [self._of(sequence) for sequence in sequences]
        starts = None
        if queries is not None:
            if len(queries) != len(found) or min(queries, default=0) < 0:
                want = f"{len(found)} numbers >= 0, one for each sequence"
                raise InvalidArgumentError("queries", repr(list(queries)), want)
            starts = [0, *itertools.accumulate(queries)]
        return [list(each.pages) for each in found], [each.length for each in found], starts

    def _take(self) -> int:
        page = self._free.pop()
        self._users[page] = 1
        for memory in self._memories:
            memory[page] = 0
        for scale in self._page_scales():
            scale[page] = 1
        return page

    @property
    def _memories(self) -> list[Tensor]:
        """Of keys and values, by pages."""
        return [each.memory if isinstance(each, FormattedCache) else each for each in (*self.k, *self.v)]

    def _page_scales(self) -> list[Tensor]:
        """The scales that belong to pages."""
        return [] if self.scale_of not in OF_PAGES else [*(self.k_scale or ()), *(self.v_scale or ())]

    def _of(self, sequence: Hashable) -> _Sequence:
        if sequence not in self._sequences:
            raise InvalidArgumentError("sequence", repr(sequence), "one that was allocated and not freed")
        return self._sequences[sequence]

    def _check_new(self, sequence: Hashable) -> None:
        if sequence in self._sequences:
            raise InvalidArgumentError("sequence", repr(sequence), "one that is not there yet")
