"""From a case of attention to its inputs: the same bits on every machine."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xattn_conformance.case import Case
from xattn_conformance.inputs.draw import Draw
from xattn_conformance.inputs.formats import FORMATS, encode, round_to
from xattn_conformance.ops.attention import recipes
from xattn_conformance.ops.attention.families import FAMILIES, STREAMS
from xattn_conformance.ops.attention.problem import Problem
from xattn_conformance.ops.attention.visibility import poisoned_with as poisoned_with

# Float tensors by the format they are held in; "" is the dtype of q.
_FORMATS = {
    "q": "",
    "k": "",
    "v": "",
    "sinks": "float32",
    "alibi_slopes": "float32",
    "bias": "",
    "dout": "",
    "dlse": "float32",
}
# Tensors of gradients by the names of xattn's GRADS.
_WANTED = {"qkv": ("q", "k", "v"), "bias": ("bias",), "sinks": ("sinks",), "lse": ()}


def make(case: Case) -> Problem:
    """Raises ValueError for an unknown family or recipe."""
    if case.family not in FAMILIES:
        raise ValueError(f"no family {case.family!r}; known: {', '.join(FAMILIES)}")
    size, draw = case.shape, Draw(case.seed, STREAMS)
    batch, seqlen_q, seqlen_k = size["batch"], size["seqlen_q"], size["seqlen_k"]
    nheads, nheads_k = size["nheads"], size["nheads_k"]
    options = dict(case.options)
    sizes = recipes.Sizes(batch, nheads, seqlen_q, seqlen_k, -FORMATS[case.dtype].largest)
    options |= recipes.tensors(options, sizes, draw)
    if options.get("window") is not None:
        left, right = options["window"]
        options["window"] = (left, right)
    problem = Problem(
        dtype=case.dtype,
        q=draw.normal("q", (batch, seqlen_q, nheads, size["headdim"])),
        k=draw.normal("k", (batch, seqlen_k, nheads_k, size["headdim"])),
        v=draw.normal("v", (batch, seqlen_k, nheads_k, size["headdim_v"])),
        **options,
    )
    problem = FAMILIES[case.family](problem, draw)
    return rounded(differentiated(problem, case.grads, case.family, draw))


def differentiated(problem: Problem, grads: tuple[str, ...], family: str, draw: Draw) -> Problem:
    """With the gradients that are asked for, by the names of xattn's GRADS, and those that come in: of the family
    "shared" that of out.sum(), of "through_lse" none of out."""
    if not grads:
        return problem
    batch, nheads, seqlen_q, _ = problem.scores_shape
    shape, constant = (batch, seqlen_q, nheads, problem.v.shape[3]), {"shared": 1.0, "through_lse": 0.0}.get(family)
    return replace(
        problem,
        dout=draw.normal("dout", shape) if constant is None else np.full(shape, constant),
        dlse=draw.normal("dlse", (batch, nheads, seqlen_q)) if "lse" in grads else None,
        grads=tuple(name for asked in grads for name in _WANTED[asked]),
    )


def rounded(problem: Problem) -> Problem:
    """Every float in the format that it is held in."""
    given = {name: getattr(problem, name) for name in _FORMATS}
    held: dict[str, Any] = {name: round_to(v, _format(problem, name)) for name, v in given.items() if v is not None}
    return replace(problem, **held)


def bits(problem: Problem) -> dict[str, NDArray[Any]]:
    """Every input tensor by name: floats as the codes of their format, mask as bool, seqlens_k as int32."""
    given = {name: getattr(problem, name) for name in _FORMATS}
    found: dict[str, NDArray[Any]] = {
        name: encode(values, _format(problem, name)) for name, values in given.items() if values is not None
    }
    if problem.mask is not None:
        found["mask"] = problem.mask
    if problem.seqlens_k is not None:
        found["seqlens_k"] = problem.seqlens_k.astype(np.int32)
    return found


def digest(problem: Problem) -> str:
    """sha256, in hex, over the name, dtype, shape and little-endian bits of every input tensor."""
    running = hashlib.sha256()
    for name, values in sorted(bits(problem).items()):
        dtype = _format(problem, name) if name in _FORMATS else values.dtype.name
        running.update(f"{name} {dtype} {'x'.join(map(str, values.shape))}\n".encode())
        running.update(values.astype(values.dtype.newbyteorder("<")).tobytes())
    return running.hexdigest()


def _format(problem: Problem, name: str) -> str:
    return _FORMATS[name] or problem.dtype
