"""More batch rows than a GPU's grid has places: torch's kernels launch a block for each, and past the limit the launch
fails with a raw CUDA error (70,000 rows of one query, run on an NVIDIA H200)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from xattn import AttentionOutput, AttentionRequest
from xattn.plugin import Plan
from xattn.plugin.symbolic import known

# The most blocks that a grid has in its second and third dimension.
ROWS_MAX = 65_535


def too_many(request: AttentionRequest) -> bool:
    """Whether the batch rows are more than one launch takes."""
    return request.device != "cpu" and known(request.batch > ROWS_MAX)


def in_parts(run: Plan, rows_max: int = ROWS_MAX) -> Plan:
    """The plan, run for so many batch rows at a time."""

    def run_parts(q: Tensor, k: Tensor, v: Tensor, **given: Any) -> Tensor | AttentionOutput:
        batch = q.shape[0]
        found = []
        for start in range(0, batch, rows_max):
            rows = slice(start, start + rows_max)
            part = {name: _rows(name, value, rows, batch) for name, value in given.items()}
            found.append(run(q[rows], k[rows], v[rows], **part))
        if isinstance(found[0], AttentionOutput):
            outs, lses = zip(*found, strict=True)
            return AttentionOutput(torch.cat(outs), torch.cat(lses))
        return torch.cat(found)

    return run_parts


def _rows(name: str, value: Any, rows: slice, batch: int) -> Any:
    """The part of an optional argument that belongs to some batch rows."""
    of_each_row = {"seqlens_k": 1, "alibi_slopes": 2, "mask": 4, "bias": 4}.get(name)
    if of_each_row is None or value.dim() != of_each_row or value.shape[0] != batch:
        return value
    return value[rows]
