"""An indexer's logits by the `sdpa` backend: what it declares, and its plans."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from xattn import (
    Capabilities,
    MqaLogitsKernel,
    MqaLogitsRequest,
    PagedBatch,
    PagedMqaLogitsKernel,
    PagedMqaLogitsRequest,
)
from xattn.plugin import Plan
from xattn.plugin.quantised import FP8
from xattn.plugin.tensors import is_plain
from xattn_sdpa.logits import engine, torch_ops

_BLOCK: Capabilities[Any] = Capabilities(
    device="cpu",
    dtypes=frozenset({torch.float32, torch.float16, torch.bfloat16}) | FP8,
    features=frozenset({"k_scale", "empty"}),
    checked="run on CPU, torch 2.13",
)


class SdpaMqaLogits(MqaLogitsKernel):
    capabilities = (_BLOCK,)

    def plan(self, request: MqaLogitsRequest) -> Plan:
        def run(
            q: Tensor, k: Tensor, weights: Tensor, starts: Tensor, ends: Tensor, *, k_scale: Tensor | None = None
        ) -> Tensor:
            forward = engine.mqa_logits if _alone(q, k) else torch_ops.mqa_logits
            return forward(q, k, weights, starts, ends, k_scale)

        return run

    def kernel_name(self, request: MqaLogitsRequest) -> str:
        return "torch.mm and relu, some rows at a time"


class SdpaPagedMqaLogits(PagedMqaLogitsKernel):
    capabilities = (_BLOCK,)

    def plan(self, request: PagedMqaLogitsRequest) -> Plan:
        def run(
            q: Tensor, k_cache: Tensor, weights: Tensor, batch: PagedBatch, *, k_scale: Tensor | None = None
        ) -> Tensor:
            forward = engine.paged_mqa_logits if _alone(q, k_cache) else torch_ops.paged_mqa_logits
            return forward(q, k_cache, weights, batch, k_scale)

        return run

    def kernel_name(self, request: PagedMqaLogitsRequest) -> str:
        return "torch.mm and relu over the pages of one sequence at a time"


def _alone(*tensors: Tensor) -> bool:
    """Without tracers the engine by itself: an operator costs 20 us a call."""
    return not torch.compiler.is_compiling() and all(map(is_plain, tensors))
