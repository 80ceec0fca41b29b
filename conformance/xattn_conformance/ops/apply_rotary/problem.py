"""The values of one call of apply_rotary, and from a case to them: the same bits on every machine."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xattn_conformance.array import Array
from xattn_conformance.case import Case
from xattn_conformance.inputs.draw import Draw
from xattn_conformance.inputs.formats import encode, round_to
from xattn_conformance.ops.apply_rotary import families


@dataclass(frozen=True)
class Rotary:
    """A call in the contract's words. Pure data, in float64, held exactly by `dtype`, cos and sin by `table`.

    q: (batch, seqlen, nheads, headdim). k: (batch, seqlen, nheads_k, headdim), or None.
    cos, sin: (seqlen, rotary_dim / 2) or (batch, seqlen, rotary_dim / 2).
    dout, dout_k: the gradients that come in, in the shapes of q and k; None where none are asked for.
    """

    dtype: str
    table: str
    q: Array
    k: Array | None
    cos: Array
    sin: Array
    interleaved: bool = False
    dout: Array | None = None
    dout_k: Array | None = None

    @property
    def tensors(self) -> dict[str, Array]:
        """The float arrays that are there, by name."""
        names = ("q", "k", "cos", "sin", "dout", "dout_k")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    def format(self, name: str) -> str:
        """The dtype that holds a tensor."""
        return self.table if name in ("cos", "sin") else self.dtype


def make(case: Case) -> Rotary:
    """Raises ValueError for an unknown family."""
    if case.family not in families.FAMILIES:
        raise ValueError(f"no family {case.family!r}; known: {', '.join(families.FAMILIES)}")
    size, options, draw = case.shape, case.options, Draw(case.seed, families.STREAMS)
    rows = (size["batch"], size["seqlen_q"])
    pairs = options.get("rotary_dim", size["headdim"]) // 2
    queries, keys = ((*rows, size[name], size["headdim"]) for name in ("nheads", "nheads_k"))
    inputs = families.FAMILIES[case.family](
        families.Inputs(
            q=draw.normal("q", queries),
            k=draw.normal("k", keys),
            cos=np.empty((*(rows if options.get("batched") else rows[1:]), pairs)),
            sin=np.empty(0),
            interleaved=bool(options.get("interleaved")),
        ),
        draw,
    )
    alone = bool(options.get("alone"))
    made = Rotary(
        dtype=case.dtype,
        table=case.dtype if options.get("table") == "input" else "float32",
        q=inputs.q,
        k=None if alone else inputs.k,
        cos=inputs.cos,
        sin=inputs.sin,
        interleaved=inputs.interleaved,
        dout=draw.normal("dout", queries) if case.grads else None,
        dout_k=draw.normal("dout_k", keys) if case.grads and not alone else None,
    )
    held: dict[str, Any] = {name: round_to(values, made.format(name)) for name, values in made.tensors.items()}
    return replace(made, **held)


def bits(problem: Rotary) -> dict[str, NDArray[Any]]:
    """Every input tensor by name, as the codes of its format."""
    return {name: encode(values, problem.format(name)) for name, values in problem.tensors.items()}


def digest(problem: Rotary) -> str:
    """sha256, in hex, over the name, dtype, shape and little-endian bits of every input tensor."""
    running = hashlib.sha256()
    for name, values in sorted(bits(problem).items()):
        running.update(f"{name} {problem.format(name)} {'x'.join(map(str, values.shape))}\n".encode())
        running.update(values.astype(values.dtype.newbyteorder("<")).tobytes())
    return running.hexdigest()
