"""The `reference` backend: every feature of the contract, differentiable, slow."""

from __future__ import annotations

import functools

import torch

from xattn import Backend, Capabilities, Reason, Request
from xattn.backend import Plan
from xattn.capabilities import FEATURES, GRADS
from xattn.rotary import selection as rotary
from xattn.rotary.request import RotaryRequest
from xattn_reference.math import attention


class ReferenceBackend(Backend):
    name = "reference"
    api_version = 1
    capabilities = (
        Capabilities(
            device="any",
            dtypes=frozenset({torch.float64, torch.float32, torch.float16, torch.bfloat16}),
            features=frozenset(FEATURES),
            grads=frozenset(GRADS),
            priority={"default": 0},
            fallback=True,
            checked="run on CPU and on an NVIDIA H200",
        ),
    )

    def plan(self, request: Request) -> Plan:
        return functools.partial(attention, request)

    def kernel(self, request: Request) -> str:
        return "PyTorch matmul and exp over the whole score matrix"

    def rotary_reasons(self, request: RotaryRequest) -> list[Reason]:
        return []

    def rotary_plan(self, request: RotaryRequest) -> rotary.Plan:
        return rotary.plan(request)
