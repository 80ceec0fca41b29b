"""A kernel that cuts the keys of a sequence into parts and merges them, and how it cuts follows from the call: what
packed and paged ops have to go wrong with where the bits of a sequence should be its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

import xattn
from xattn_conformance.case import Case
from xattn_conformance.mutants.impostor import Impostor, Where
from xattn_conformance.ops.call import Execute, execute

Arguments = Mapping[str, Any]
# q, k and v of each sequence, without a batch dimension.
Sequences = Sequence[tuple[Tensor, Tensor, Tensor]]
# The keys at which each sequence of a call is cut.
Cuts = Callable[[Sequences], list[list[int]]]

_PART = 32


def by_batch(sequences: Sequences) -> list[list[int]]:
    """Fewer than four sequences do not fill the device: two parts each."""
    return [[len(k) // 2] if len(sequences) < 4 else [] for _, k, _ in sequences]


def by_length(sequences: Sequences) -> list[list[int]]:
    """As many equal parts as the longest sequence has tiles."""
    parts = -(-max(len(k) for _, k, _ in sequences) // _PART)
    return [[len(k) * part // parts for part in range(1, parts)] for _, k, _ in sequences]


def by_place(sequences: Sequences) -> list[list[int]]:
    """Tiles are counted from the first sequence on."""
    found, start = [], 0
    for _, k, _ in sequences:
        found.append([cut - start for cut in range(-(-start // _PART) * _PART, start + len(k), _PART)])
        start += len(k)
    return found


WAYS: Mapping[str, tuple[str, Cuts, tuple[str, ...]]] = {
    "splits-by-batch": ("keys are cut in two where there are few sequences", by_batch, ("batch",)),
    "splits-by-length": (
        "keys are cut into as many parts as the longest sequence has tiles", by_length, ("chunks_of_1", "chunks_of_17"),
    ),
    "splits-by-place": ("keys are cut where tiles end that begin with the first sequence", by_place, ("order",)),
}  # fmt: skip


def impostors(op: str, prefix: str, sequences: Callable[[Arguments], Sequences]) -> tuple[Impostor, ...]:
    """sequences: of a call's arguments."""

    def opened(cuts: Cuts) -> Callable[[], AbstractContextManager[Execute]]:
        def run(name: str, arguments: Arguments, backend: str) -> Any:
            if name != op:
                return execute(name, arguments, backend)
            return _split(arguments, sequences(arguments), cuts)

        @contextmanager
        def made() -> Iterator[Execute]:
            yield run

        return made

    return tuple(
        Impostor(f"{prefix}-{name}", wrong, opened(cuts), Where(shown, _plain))
        for name, (wrong, cuts, shown) in WAYS.items()
    )


def _plain(case: Case) -> bool:
    others = {"window", "softcap", "sinks", "alibi_slopes", "scale", "padding"}
    return case.options.get("deterministic") == "batch" and not case.grads and not others & set(case.options)


def _split(arguments: Arguments, sequences: Sequences, cuts: Cuts) -> xattn.AttentionOutput:
    """The result of a causal call, each part of it with bits of its own."""
    found = []
    for (q, k, v), inside in zip(sequences, cuts(sequences), strict=True):
        parts = []
        for start, stop in pairwise([0, *inside, len(k)]):
            part = (x[start:stop].unsqueeze(0) for x in (k, v))
            off = len(k) - len(q) - start
            parts.append(
                xattn.attention(
                    q.unsqueeze(0), *part, causal=True, align=off, deterministic="batch", return_lse=True,
                    backend="reference",
                )
            )  # fmt: skip
        found.append(xattn.merge_attention([part.out for part in parts], [part.lse for part in parts]))
    out, lse = torch.cat([each.out[0] for each in found]), torch.cat([each.lse[0] for each in found], 1)
    return xattn.AttentionOutput(out, lse)
