"""A row as a call of xattn, and what it must return: by the suite's oracle in float64, sequence by sequence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from published.rows import Row
from torch import Tensor
from xattn_conformance.array import Array
from xattn_conformance.ops.attention.noise import forward, gradient
from xattn_conformance.ops.attention.problem import Problem
from xattn_conformance.tolerance.arithmetic import Arithmetic
from xattn_conformance.tolerance.compare import failures
from xattn_conformance.tolerance.expected import Expected

import xattn

# Above so many scores of a head the golden is worked out for some queries: the ends, and others between.
_WHOLE = 2**16
_SOME = 48
_PACKED = ("KVPACKED", "QKVPACKED")


@dataclass(frozen=True)
class Made:
    """The tensors of a row. q, k, v: of each sequence, (tokens, heads, headdim)."""

    row: Row
    q: list[Tensor]
    k: list[Tensor]
    v: list[Tensor]
    dout: list[Tensor]
    sinks: Tensor | None
    slopes: Tensor | None
    bias: Tensor | None

    @cached_property
    def arguments(self) -> dict[str, Any]:
        """By name, with the leaves whose gradients are asked for."""
        make = {"attention": self._dense, "varlen_attention": self._packed, "paged_attention": self._paged}
        options = {"return_lse": not self.row.grads, **self.row.options}
        for name in ("beside", "block_size"):
            options.pop(name, None)
        beside = {"sinks": self.sinks, "alibi_slopes": self.slopes, "bias": self.bias}
        return {**make[self.row.op](), **options, **{n: t for n, t in beside.items() if t is not None}}

    @property
    def leaves(self) -> dict[str, Tensor]:
        """What gradients are asked of: q, k, v, or the one tensor that two or three of them lie in."""
        return {name: x for name in ("q", "k", "v") if (x := self.arguments[name]).requires_grad}

    def explain(self, backend: str) -> list[xattn.Reason]:
        said = xattn.explain(getattr(xattn, self.row.op), **self.arguments, backend=backend)
        (candidate,) = [each for each in said.candidates if each.name == backend]
        return list(candidate.reasons)

    def run(self, backend: str) -> list[dict[str, Array]]:
        """Results of each problem, (batch, heads, rows, columns)."""
        with torch.set_grad_enabled(self.row.grads):
            found = getattr(xattn, self.row.op)(**self.arguments, backend=backend)
        out, lse = found if isinstance(found, tuple) else (found, None)
        whole = {"out": out.detach()}
        if self.row.grads:
            dout = torch.stack(self.dout) if self.row.op == "attention" else torch.cat(self.dout)
            grads = torch.autograd.grad(out, list(self.leaves.values()), dout)
            whole |= {f"d{name}": grad for name, grad in zip(self.leaves, grads, strict=True)}
        if self.row.op == "attention":
            parts = {name: _numbers(x.transpose(1, 2)) for name, x in whole.items()}
            return [parts | ({} if lse is None else {"lse": _numbers(lse)[..., None]})]
        results = []
        for rows, keys in zip(*self._slices, strict=True):
            part = {n: _numbers(x[keys if n in ("dk", "dv") else rows].transpose(0, 1))[None] for n, x in whole.items()}
            results.append(part | ({} if lse is None else {"lse": _numbers(lse[:, rows])[None, ..., None]}))
        return results

    def failures(self, backend: str, arithmetic: Arithmetic) -> list[str]:
        """The checks that the backend fails."""
        found = []
        for problem, got in zip(self._problems, self.run(backend), strict=True):
            asked = {name: one for name, one in _expected(problem, arithmetic).items() if name in got}
            found += [f"{check.name} is {check.value}, limit {check.limit}" for check in failures(asked, got)]
        return found

    @property
    def _problems(self) -> list[Problem]:
        """One of the whole batch, or one for each packed sequence."""
        options: dict[str, Any] = {name: self.row.options.get(name) for name in ("window", "softcap")}
        options["causal"] = self.row.options.get("causal", False)
        whole = self.row.op == "attention"
        sequences = zip(self.q, self.k, self.v, self.dout, strict=True)
        batches = [[x[None] for x in each] for each in sequences]
        if whole:
            batches = [[torch.stack(each) for each in (self.q, self.k, self.v, self.dout)]]
        found = []
        for b, (q, k, v, dout) in enumerate(batches):
            each = self.slopes is not None and self.slopes.dim() == 2 and not whole
            slopes = None if self.slopes is None else _numbers(self.slopes[b] if each else self.slopes)
            problem = Problem(
                dtype=self.row.dtype,
                q=_numbers(q),
                k=_numbers(k),
                v=_numbers(v),
                sinks=None if self.sinks is None else _numbers(self.sinks),
                alibi_slopes=slopes,
                bias=None if self.bias is None else _numbers(self.bias),
                return_lse=True,
                **options,
            )
            found.append(replace(problem, dout=_numbers(dout), grads=("q", "k", "v")) if self.row.grads else problem)
        return found

    @cached_property
    def _slices(self) -> tuple[list[slice], list[slice]]:
        """The rows of each sequence, and its keys."""
        ends = [np.cumsum([0, *(pair[i] for pair in self.row.lengths)]).tolist() for i in (0, 1)]
        return tuple([slice(*each) for each in pairwise(end)] for end in ends)  # type: ignore[return-value]

    def _dense(self) -> dict[str, Tensor]:
        q, k, v = (torch.stack(each) for each in (self.q, self.k, self.v))
        if self.row.layout in ("BHSD", "SBHD"):
            swapped = (1, 2) if self.row.layout == "BHSD" else (0, 1)
            q, k, v = (x.transpose(*swapped).contiguous().transpose(*swapped) for x in (q, k, v))
        return self._laid_out(q, k, v)

    def _packed(self) -> dict[str, Tensor]:
        q, k, v = (torch.cat(each) for each in (self.q, self.k, self.v))
        cu = {f"cu_seqlens_{n}": _starts([pair[i] for pair in self.row.lengths]) for i, n in enumerate("qk")}
        return {**self._laid_out(q, k, v), **cu}

    def _laid_out(self, q: Tensor, k: Tensor, v: Tensor) -> dict[str, Tensor]:
        if self.row.layout in _PACKED and k.shape == v.shape:
            whole = self.row.layout == "QKVPACKED"
            parts = torch.stack((q, k, v) if whole else (k, v), dim=-3).unbind(-3)
            q, k, v = parts if whole else (q, *parts)
        if self.row.grads:
            q, k, v = (x.detach().requires_grad_() for x in (q, k, v))
        return {"q": q, "k": k, "v": v}

    def _paged(self) -> dict[str, Tensor]:
        """Keys in pages in no order, with NaN in the places of no key, or 0 where they are promised to be finite."""
        size = self.row.options["block_size"]
        counts = [-(-len(k) // size) for k in self.k]
        order = torch.randperm(sum(counts) + 1, generator=torch.Generator().manual_seed(self.row.seed))
        table = torch.full((len(counts), max(counts)), -1, dtype=torch.int32)
        fill = 0.0 if self.row.options.get("unseen_finite") else float("nan")
        caches = []
        for parts in (self.k, self.v):
            cache = torch.full((len(order), size, *parts[0].shape[1:]), fill, dtype=parts[0].dtype)
            if self.row.layout == "HND":
                cache = cache.transpose(1, 2).contiguous().transpose(1, 2)
            caches.append(cache)
        taken = 0
        for b, count in enumerate(counts):
            pages = order[taken : taken + count]
            table[b, :count] = pages
            taken += count
            for cache, part in zip(caches, (self.k[b], self.v[b]), strict=True):
                for n, page in enumerate(pages.tolist()):
                    places = part[n * size : (n + 1) * size]
                    cache[page, : len(places)] = places
        queries, keys = ([pair[i] for pair in self.row.lengths] for i in (0, 1))
        starts = {} if set(queries) == {1} else {"cu_seqlens_q": _starts(queries)}
        return {
            "q": torch.cat(self.q),
            "k_cache": caches[0],
            "v_cache": caches[1],
            "block_table": table,
            "seqlens_k": torch.tensor(keys, dtype=torch.int32),
            **starts,
        }


def make(row: Row) -> Made:
    generator = torch.Generator().manual_seed(row.seed)
    (nheads, nheads_k), (headdim, headdim_v) = row.heads, row.headdims
    dtype = getattr(torch, row.dtype)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    beside = row.options.get("beside")
    # Kernels of paged attention have slopes of heads alone.
    sloped = (nheads,) if row.op == "paged_attention" else (len(row.lengths), nheads)
    queries, keys = row.lengths[0]
    return Made(
        row,
        q=[normal(n, nheads, headdim) for n, _ in row.lengths],
        k=[normal(n, nheads_k, headdim) for _, n in row.lengths],
        v=[normal(n, nheads_k, headdim_v) for _, n in row.lengths],
        dout=[normal(n, nheads, headdim_v) for n, _ in row.lengths],
        sinks=torch.randn(nheads, generator=generator) if beside == "sinks" else None,
        slopes=0.3 * torch.rand(sloped, generator=generator) + 0.01 if beside == "alibi" else None,
        bias=normal(queries, keys) if beside == "bias" else None,
    )


def _expected(problem: Problem, arithmetic: Arithmetic) -> Mapping[str, Expected]:
    _, _, queries, keys = problem.scores_shape
    some = None
    if queries * keys > _WHOLE and not problem.grads:
        some = np.unique(np.linspace(0, queries - 1, _SOME).round().astype(np.int64))
    found = forward.expected(problem, arithmetic, some)
    return found | (gradient.expected(problem, arithmetic) if problem.grads else {})


def _starts(lengths: Sequence[int]) -> Tensor:
    return torch.tensor([0, *np.cumsum(lengths).tolist()], dtype=torch.int32)


def _numbers(x: Tensor) -> Array:
    found: Array = x.detach().double().numpy()
    return found
