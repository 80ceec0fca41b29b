"""The values of one call of varlen_attention_backward: a problem of varlen_attention, and what a forward call of it
returned."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import msgspec
import numpy as np

from xattn_conformance.array import Array
from xattn_conformance.case import Case
from xattn_conformance.inputs.formats import round_to
from xattn_conformance.ops.attention_like import NOBODYS, Problem, oracle
from xattn_conformance.ops.sequences import Held
from xattn_conformance.ops.varlen_attention import problem as packed
from xattn_conformance.ops.varlen_attention.problem import Varlen


@dataclass(frozen=True)
class Backward:
    """whole: with dout, and with sinks, whose weight is in the lse."""

    whole: Varlen

    @cached_property
    def parts(self) -> list[Problem]:
        return packed.sequences(self.whole)

    @cached_property
    def given(self) -> list[dict[str, Array]]:
        """out and lse of each sequence, (1, nheads, queries, columns), in their formats."""
        found = []
        for part in self.parts:
            out, lse = oracle.forward(part)
            rounded = round_to(out, part.dtype).transpose(0, 2, 1, 3), round_to(lse, "float32")[..., None]
            found.append(dict(zip(NOBODYS, rounded, strict=True)))
        return found

    @property
    def tensors(self) -> Held:
        """The arrays of the call by name, each with the format that holds it. Rows of no sequence hold NaN."""
        whole, used = self.whole, int(self.whole.cu_seqlens_q[-1])
        out, lse = (packed.joined(whole, name, [each[name] for each in self.given], np.nan)[0] for name in NOBODYS)
        dout = np.zeros((len(whole.q), *out.shape[::2])) if whole.dout is None else whole.dout.copy()
        dout[used:] = np.nan
        results = {
            "dout": (dout, whole.dtype),
            "out": (out.transpose(1, 0, 2), whole.dtype),
            "lse": (lse[..., 0], "float32"),
        }
        return {**{name: held for name, held in whole.tensors.items() if name != "sinks"}, **results}


def make(case: Case) -> Backward:
    """Raises ValueError for an unknown family or recipe."""
    return Backward(packed.make(msgspec.structs.replace(case, grads=("qkv",))))


def poisoned(problem: Backward, value: float) -> Backward:
    return Backward(packed.poisoned(problem.whole, value))
