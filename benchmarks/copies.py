"""Copies that a call makes of what is already in memory, and the layout of what it returns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import product

import torch
from common import Row, qkv
from torch import Tensor

import xattn
from xattn.measure import operations
from xattn.plugin import dtype_name

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
MASKS = ("none", "bool 2d", "bool 4d", "float")
# name: (batch, seqlen_q, nheads, headdim), seqlen_k, nheads_k
SHAPES = {
    "heads 8/8": ((2, 256, 8, 64), 256, 8),
    "heads 8/2": ((2, 256, 8, 64), 256, 2),
    "decode 8/8": ((2, 1, 8, 64), 256, 8),
    "decode 8/2": ((2, 1, 8, 64), 256, 2),
}


def rows(quick: bool) -> Iterator[Row]:
    dtypes = DTYPES[:2] if quick else DTYPES
    copied: Counter[str] = Counter()
    gathered: Counter[str] = Counter()
    copying: dict[str, dict[str, int]] = {}
    scattered: list[str] = []
    calls = 0
    for (name, (shape, seqlen_k, nheads_k)), dtype, kind, causal, grad in product(
        SHAPES.items(), dtypes, MASKS, (False, True), (False, True)
    ):
        q, k, v = qkv(*shape, seqlen_k=seqlen_k, nheads_k=nheads_k, dtype=dtype, grad=grad)
        arguments = _mask(kind, shape, seqlen_k, dtype)

        def call(q: Tensor = q, k: Tensor = k, v: Tensor = v, causal: bool = causal, arguments=arguments) -> Tensor:
            return xattn.attention(q, k, v, causal=causal, **arguments)

        call()  # what a plan prepares once is no copy of a call
        ran = operations(call, (q, k, v) if grad else ())
        calls += 1
        way = ("causal, " if causal else "") + ("with backward" if grad else "no grad")
        label = f"{name}, {dtype_name(dtype)}, mask {kind}, {way}"
        if ran.materialising():
            copied.update(ran.materialising())
            copying[label] = ran.materialising()
        gathered.update(ran.gathering())
        returned = [*ran.results, *(gradient for gradient in ran.grads if gradient is not None)]
        if not all(tensor.is_contiguous() for tensor in returned):
            scattered.append(label)
    grid = f"{len(dtypes)} dtypes x {len(MASKS)} masks x causal x {len(SHAPES)} shapes x grad: {calls} calls"
    method = f"{grid}; operations counted by a TorchDispatchMode in forward and backward, second call of each"
    aside = _listed(gathered)
    measured = f"{sum(copied.values())}" + (f": {_listed(copied)}, in {len(copying)} calls" if copied else "")
    measured += f" (beside them: {aside})" if aside else ""
    data = {"copies": copying, "gathering": dict(gathered), "calls": calls}
    yield Row("copies", f"materialising copies, {grid}", "0", measured, sum(copied.values()), 0, method, data)
    yield Row(
        "copies",
        "outputs and gradients that are not BSNH-contiguous, of the same calls",
        "0",
        str(len(scattered)),
        len(scattered),
        0,
        method,
        {"calls": scattered},
    )


def _mask(kind: str, shape: tuple[int, int, int, int], seqlen_k: int, dtype: torch.dtype) -> dict[str, Tensor]:
    batch, seqlen_q, _, _ = shape
    if kind == "none":
        return {}
    if kind == "float":
        return {"bias": torch.randn(seqlen_q, seqlen_k, dtype=dtype)}
    sizes = (seqlen_q, seqlen_k) if kind == "bool 2d" else (batch, 1, seqlen_q, seqlen_k)
    return {"mask": torch.rand(sizes) < 0.8}


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.most_common())
