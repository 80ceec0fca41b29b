"""Of the frontend's graphs what attention of one query a sequence over pages needs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from xattn_elsewhere.nvidia.cudnn.kernels import NotSupportedError, banded, check_layout, check_sizes
from xattn_elsewhere.nvidia.flash import paged


class _Names:
    """An enumeration of the frontend, of which each member is its name."""

    def __getattr__(self, name: str) -> str:
        return name


data_type, heur_mode, diagonal_alignment = _Names(), _Names(), _Names()


class _Node:
    """A tensor of a graph."""

    def __init__(self, **described: Any) -> None:
        self.described = described

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("set_"):
            raise AttributeError(name)

        def put(value: Any) -> _Node:
            self.described[name.removeprefix("set_")] = value
            return self

        return put


class pygraph:  # noqa: N801 - the frontend's name
    def __init__(self, **options: Any) -> None:
        self._sdpa: dict[str, Any] = {}

    def tensor(self, **described: Any) -> _Node:
        return _Node(**described)

    def sdpa(self, **given: Any) -> tuple[_Node, _Node]:
        self._sdpa = given
        self._results = _Node(), _Node()
        return self._results

    def validate(self) -> None:
        size = self._sdpa["k"].described["dim"][2]
        if size & (size - 1):
            raise NotSupportedError("block size needs to be non-zero and a power of 2")

    def build_operation_graph(self) -> None: ...

    def create_execution_plans(self, modes: list[Any]) -> None: ...

    def check_support(self) -> None: ...

    def build_plans(self) -> None: ...

    def get_workspace_size(self) -> int:
        return 0

    def execute(self, tensors: dict[int, Tensor], workspace: Tensor, *, handle: Any) -> None:
        given = self._sdpa

        def of(name: str) -> Tensor:
            return tensors[given[name].described["uid"]]

        q, k, v, table, lengths = (of(name) for name in ("q", "k", "v", "paged_attention_k_table", "seq_len_kv"))
        check_layout(q, k, v)
        left = given.get("diagonal_band_left_bound", -1)
        kernel = banded(given["attn_scale"], left, given.get("diagonal_band_right_bound", -1), left >= 0)
        check_sizes(kernel, 1, table.shape[1] * k.shape[1], None, padded=True)
        out, lse = (tensors[node.described["uid"]] for node in self._results)
        if bool(((table < 0) | (table >= len(k))).any()):
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        for b, length in enumerate(lengths.tolist()):
            if length == 0:
                out[b], lse[b] = torch.nan, 0.0
                continue
            part = paged(slice(b, b + 1), k, v, table[b].tolist(), length, kernel, whole=True)
            found = kernel.forward(q[b : b + 1], part.k, part.v, part.behind)
            out[b], lse[b] = found[0][0], found[1][:, 0]
