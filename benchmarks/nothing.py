"""A plugin whose kernel of varlen_attention does nothing: what is left is xattn's own cost."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import xattn


def run(q: Tensor, k: Tensor, v: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, **given: Any) -> Tensor:
    return q


class NothingVarlen(xattn.VarlenKernel):
    capabilities = (
        xattn.Capabilities(
            device="cpu",
            dtypes=frozenset({torch.float32}),
            features=frozenset({"causal"}),
            priority={"default": 100},
            checked="for the benchmark alone",
        ),
    )

    def plan(self, request: xattn.VarlenRequest) -> Any:
        return run


class NothingBackend(xattn.Backend):
    name = "nothing"
    api_version = 1
    kernels = (NothingVarlen(),)


@xattn.hookimpl
def xattn_backends() -> list[xattn.Backend]:
    return [NothingBackend()]
