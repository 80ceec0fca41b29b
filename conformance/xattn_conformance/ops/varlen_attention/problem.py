"""The values of one call of varlen_attention, and from a case to them: the same bits on every machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from xattn_conformance.array import Array
from xattn_conformance.case import Case
from xattn_conformance.ops.attention_like import Problem, poisoned_with
from xattn_conformance.ops.sequences import Held, Ints, aligned, cumulated, lengths, made, slices, slopes_of
from xattn_conformance.ops.sequences import joined as laid_out

# Rows of padding after the last sequence, where a case has some.
PADDING = 5
# How far a loose bound lies above the longest sequence.
_LOOSE = 100


@dataclass(frozen=True)
class Varlen:
    """A call in the contract's words. Pure data, in float64, held exactly by `dtype`, sinks and slopes by float32.

    q: (total_q, nheads, headdim). k, v: (total_k, nheads_k, headdim or headdim_v). cu_seqlens_q, cu_seqlens_k:
    (batch + 1,); of the keys None where they are those of the queries. align: a name, an int, or (batch,) of them.
    dout: (total_q, nheads, headdim_v), dlse: (nheads, total_q), as attention's are; dlse None where nothing comes in
    through lse. grads: as attention's.
    """

    dtype: str
    q: Array
    k: Array
    v: Array
    cu_seqlens_q: Ints
    cu_seqlens_k: Ints | None = None
    max_seqlen_q: int | None = None
    max_seqlen_k: int | None = None
    causal: bool = False
    window: tuple[int | None, int | None] | None = None
    align: str | int | Ints = "bottom_right"
    scale: float | None = None
    softcap: float | None = None
    sinks: Array | None = None
    alibi_slopes: Array | None = None
    deterministic: bool | str = False
    return_lse: bool = False
    dout: Array | None = None
    dlse: Array | None = None
    grads: tuple[str, ...] = ()

    @property
    def rows(self) -> list[slice]:
        """The queries of each sequence."""
        return slices(self.cu_seqlens_q)

    @property
    def keys(self) -> list[slice]:
        return slices(self.cu_seqlens_q if self.cu_seqlens_k is None else self.cu_seqlens_k)

    def shape_of(self, name: str) -> tuple[int, int, int]:
        """(heads, tokens, columns) of a result."""
        if name == "lse":
            return self.q.shape[1], self.q.shape[0], 1
        like = {"out": self.q, "dq": self.q, "dk": self.k, "dv": self.v}[name]
        return like.shape[1], like.shape[0], self.v.shape[2] if name == "out" else like.shape[2]

    def rows_of(self, name: str) -> list[slice]:
        """The rows of each sequence in a result."""
        return self.keys if name in ("dk", "dv") else self.rows

    @property
    def tensors(self) -> Held:
        """The arrays that are there by name, each with the format that holds it."""
        formats = {"q": self.dtype, "k": self.dtype, "v": self.dtype, "sinks": "float32", "alibi_slopes": "float32"}
        formats |= {"cu_seqlens_q": "int32", "cu_seqlens_k": "int32", "align": "int32"}
        return self._held(formats)

    @property
    def incoming(self) -> Held:
        """The same of the gradients that come in."""
        return self._held({"dout": self.dtype, "dlse": "float32"})

    def _held(self, formats: Mapping[str, str]) -> Held:
        given = {name: (getattr(self, name), kind) for name, kind in formats.items()}
        return {name: (values, kind) for name, (values, kind) in given.items() if isinstance(values, np.ndarray)}


def make(case: Case) -> Varlen:
    """Raises ValueError for an unknown family or recipe."""
    size, options = case.shape, dict(case.options)
    batch, nheads, nheads_k = size["batch"], size["nheads"], size["nheads_k"]
    queries = lengths(options.pop("q"), batch, size["seqlen_q"])
    recipe_k = options.pop("k", None)
    keys = queries if recipe_k is None else lengths(recipe_k, batch, size["seqlen_k"])
    padding = PADDING if options.pop("padding", False) else 0
    bounds = {"none": None, "exact": 0, "loose": _LOOSE}[options.pop("bounds", "exact")]
    parts, options = made(case, options, queries, keys)
    widths = {"q": (nheads, size["headdim"]), "k": (nheads_k, size["headdim"]), "v": (nheads_k, size["headdim_v"])}
    packed = {
        name: np.concatenate([*(getattr(each, name)[0] for each in parts), np.full((padding, *width), np.nan)])
        for name, width in widths.items()
    }
    return Varlen(
        dtype=case.dtype,
        q=packed["q"],
        k=packed["k"],
        v=packed["v"],
        cu_seqlens_q=cumulated(queries),
        cu_seqlens_k=None if recipe_k is None else cumulated(keys),
        max_seqlen_q=None if bounds is None else int(queries.max(initial=0)) + bounds,
        max_seqlen_k=None if bounds is None else int(keys.max(initial=0)) + bounds,
        **options,
        **_incoming(parts, padding),
    )


def _incoming(parts: Sequence[Problem], padding: int) -> dict[str, Any]:
    """What asks for gradients. What comes in for padding goes nowhere."""
    if not parts or not parts[0].grads:
        return {}
    douts, dlses = [each.dout[0] for each in parts if each.dout is not None], [each.dlse for each in parts]
    through_lse = [each[0] for each in dlses if each is not None]
    return {
        "dout": np.concatenate([*douts, np.ones((padding, *douts[0].shape[1:]))]),
        "dlse": np.concatenate([*through_lse, np.ones((len(through_lse[0]), padding))], 1) if through_lse else None,
        "grads": parts[0].grads,
    }


def joined(problem: Varlen, name: str, parts: Sequence[Array], nobodys: float) -> Array:
    """A result from its parts, one a sequence."""
    return laid_out(problem.rows_of(name), problem.shape_of(name), parts, nobodys)


def sequences(problem: Varlen) -> list[Problem]:
    """One attention problem a sequence, each a batch of 1."""
    return [
        Problem(
            dtype=problem.dtype,
            q=problem.q[None, rows],
            k=problem.k[None, keys],
            v=problem.v[None, keys],
            causal=problem.causal,
            window=problem.window,
            align=aligned(problem.align, b),
            scale=problem.scale,
            softcap=problem.softcap,
            sinks=problem.sinks,
            alibi_slopes=slopes_of(problem.alibi_slopes, b),
            return_lse=problem.return_lse,
            dout=None if problem.dout is None else problem.dout[None, rows],
            dlse=None if problem.dlse is None else problem.dlse[None, :, rows],
            grads=problem.grads,
        )
        for b, (rows, keys) in enumerate(zip(problem.rows, problem.keys, strict=True))
    ]


def poisoned(problem: Varlen, value: float) -> Varlen:
    """With k and v of every key that no query sees, and every row of padding, filled with a value."""
    q, k, v = problem.q.copy(), problem.k.copy(), problem.v.copy()
    q[problem.cu_seqlens_q[-1] :] = value
    last = problem.keys[-1].stop if problem.keys else 0
    k[last:], v[last:] = value, value
    for keys, sequence in zip(problem.keys, sequences(problem), strict=True):
        filled = poisoned_with(sequence, value)
        k[keys], v[keys] = filled.k[0], filled.v[0]
    return replace(problem, q=q, k=k, v=v)
