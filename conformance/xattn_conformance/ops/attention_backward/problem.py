"""The values of one call of attention_backward: a problem of attention, and which of its keys the call has."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import msgspec
from numpy.typing import NDArray

from xattn_conformance.array import Array
from xattn_conformance.case import Case
from xattn_conformance.inputs.formats import encode, round_to
from xattn_conformance.ops.attention_like import Problem, bits, oracle, poisoned_with, whole_problem


@dataclass(frozen=True)
class Share:
    """whole: over all keys, with dout. keys: those that the call has."""

    whole: Problem
    keys: slice

    @property
    def all_keys(self) -> bool:
        return self.keys == slice(0, self.whole.k.shape[1])

    @cached_property
    def results(self) -> tuple[Array, Array]:
        """out (batch, seqlen_q, nheads, headdim_v) and lse (batch, nheads, seqlen_q) of all keys, in their formats."""
        out, lse = oracle.forward(self.whole)
        return round_to(out, self.whole.dtype), round_to(lse, "float32")

    @cached_property
    def part(self) -> Problem:
        """The problem of the given keys alone: the same pairs are visible. It has no sinks; lse has their weight."""
        if self.all_keys:
            return replace(self.whole, sinks=None)
        whole, keys = self.whole, self.keys
        off = whole.k.shape[1] - whole.q.shape[1] if whole.align == "bottom_right" else whole.align
        off = 0 if off == "top_left" else off
        assert isinstance(off, int)
        return replace(
            whole,
            k=whole.k[:, keys],
            v=whole.v[:, keys],
            sinks=None,
            align=off - keys.start,
            mask=_columns(whole.mask, keys),
            bias=_columns(whole.bias, keys),
        )


def make(case: Case) -> Share:
    """Raises ValueError for an unknown family or recipe."""
    options = dict(case.options)
    number, _, parts = options.pop("part").partition("/")
    whole = whole_problem(msgspec.structs.replace(case, options=options))
    seqlen_k = whole.k.shape[1]
    ends = [seqlen_k * n // int(parts) for n in (int(number) - 1, int(number))]
    return Share(whole, slice(*ends))


def poisoned(problem: Share, value: float) -> Share:
    """With k and v of every key that no query sees filled with a value."""
    return Share(poisoned_with(problem.whole, value), problem.keys)


def positional(problem: Share) -> bool:
    """Whether the answer depends on where the diagonal is."""
    whole = problem.whole
    return whole.causal or whole.window is not None or whole.alibi_slopes is not None


def inputs(problem: Share) -> dict[str, NDArray[Any]]:
    """The drawn tensors, of all keys, and the results that are given."""
    out, lse = problem.results
    return {**bits(problem.whole), "out": encode(out, problem.whole.dtype), "lse": encode(lse, "float32")}


def digest(problem: Share) -> str:
    """sha256, in hex, over what is drawn, and which keys are given; out and lse follow from it."""
    running = hashlib.sha256(f"{problem.keys.start}:{problem.keys.stop}\n".encode())
    for name, values in sorted(bits(problem.whole).items()):
        running.update(f"{name} {'x'.join(map(str, values.shape))}\n".encode())
        running.update(values.astype(values.dtype.newbyteorder("<")).tobytes())
    return running.hexdigest()


def _columns(values: NDArray[Any] | None, keys: slice) -> NDArray[Any] | None:
    return values if values is None or values.shape[-1] == 1 else values[..., keys]
