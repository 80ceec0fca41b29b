"""Prompts in chunks: calls over some queries of every packed sequence, and results of the whole from theirs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from xattn_conformance.ops.base import Tensors, Variation
from xattn_conformance.ops.call import Call


def rows_of(starts: Sequence[int], size: int) -> Iterator[list[slice]]:
    """The next `size` queries of each sequence, or as many as it has left, until none has any. starts: cu_seqlens_q."""
    longest = max((stop - start for start, stop in pairwise(starts)), default=0)
    for first in range(0, longest, size):
        yield [slice(min(start + first, stop), min(start + first + size, stop)) for start, stop in pairwise(starts)]


def chunked(call: Call, starts: Sequence[int], size: int, part: Callable[[list[slice]], Call]) -> Variation:
    """part: the call over some rows of q. Raises ValueError for a call whose parts are not those of the whole."""
    if not call.options["causal"] or call.options.get("align", "bottom_right") != "bottom_right" or call.wanted:
        raise ValueError("chunks need a causal call, aligned bottom right, without gradients")
    every = list(rows_of(starts, size))

    def gather(found: Sequence[Tensors]) -> dict[str, Tensor]:
        places = torch.tensor([row for rows in every for each in rows for row in range(each.start, each.stop)])
        whole = {}
        for name in found[0]:
            tokens = 1 if name == "lse" else 0
            joined = torch.cat([each[name] for each in found], tokens)
            # Rows of no sequence are as the contract has them.
            shape = list(joined.shape)
            shape[tokens] = call.tensors["q"].shape[0]
            blank = joined.new_full(shape, float("-inf") if name == "lse" else 0.0)
            whole[name] = blank.index_copy(tokens, places.to(joined.device), joined)
        return whole

    return Variation(f"with {size} queries of each sequence at a time", tuple(map(part, every)), gather)


def cumulated(slices: Sequence[slice], like: Tensor) -> Tensor:
    """cu_seqlens of so many rows."""
    lengths = torch.tensor([0, *(each.stop - each.start for each in slices)])
    return lengths.cumsum(0).to(like)
