"""The values of one call of merge_attention, and from a case to them: the same bits on every machine."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xattn_conformance.array import Array
from xattn_conformance.case import Case
from xattn_conformance.inputs.draw import Draw
from xattn_conformance.inputs.formats import encode, round_to
from xattn_conformance.ops.merge_attention import families


@dataclass(frozen=True)
class Merge:
    """A call in the contract's words. Pure data, in float64; outs and dout are held exactly by `dtype`, lses and dlse
    by float32.

    outs: (parts, batch, seqlen, nheads, headdim). lses: (parts, batch, nheads, seqlen).
    packed: the tensors of the call have no batch, which is 1 here.
    dout, dlse: the gradients that come in, in the shapes of one part; None where none are asked for.
    """

    dtype: str
    outs: Array
    lses: Array
    packed: bool = False
    dout: Array | None = None
    dlse: Array | None = None

    @property
    def parts(self) -> int:
        return len(self.outs)

    @property
    def arrays(self) -> dict[str, Array]:
        """The arrays that are there, by name."""
        named = {"outs": self.outs, "lses": self.lses, "dout": self.dout, "dlse": self.dlse}
        return {name: values for name, values in named.items() if values is not None}

    def format(self, name: str) -> str:
        """The dtype that holds an array."""
        return "float32" if name in ("lses", "dlse") else self.dtype


def make(case: Case) -> Merge:
    """Raises ValueError for an unknown family."""
    if case.family not in families.FAMILIES:
        raise ValueError(f"no family {case.family!r}; known: {', '.join(families.FAMILIES)}")
    size, draw, parts = case.shape, Draw(case.seed, families.STREAMS), case.options["parts"]
    out = (size["batch"], size["seqlen_q"], size["nheads"], size["headdim"])
    lse = (size["batch"], size["nheads"], size["seqlen_q"])
    outs, lses = draw.normal("outs", (parts, *out)), draw.normal("lses", (parts, *lse))
    outs, lses = families.FAMILIES[case.family](outs, lses, draw)
    return Merge(
        dtype=case.dtype,
        outs=round_to(outs, case.dtype),
        lses=round_to(lses, "float32"),
        packed=bool(case.options.get("packed")),
        dout=round_to(draw.normal("dout", out), case.dtype) if case.grads else None,
        dlse=round_to(draw.normal("dlse", lse), "float32") if case.grads else None,
    )


def bits(problem: Merge) -> dict[str, NDArray[Any]]:
    """Every input by name, as the codes of its format."""
    return {name: encode(values, problem.format(name)) for name, values in problem.arrays.items()}


def digest(problem: Merge) -> str:
    """sha256, in hex, over the name, dtype, shape and little-endian bits of every input."""
    running = hashlib.sha256()
    for name, values in sorted(bits(problem).items()):
        running.update(f"{name} {problem.format(name)} {'x'.join(map(str, values.shape))}\n".encode())
        running.update(values.astype(values.dtype.newbyteorder("<")).tobytes())
    return running.hexdigest()


def rows(lses: NDArray[Any]) -> NDArray[Any]:
    """(..., nheads, seqlen) as (..., seqlen, nheads, 1): to stand beside outs."""
    return np.swapaxes(lses, -1, -2)[..., None]
