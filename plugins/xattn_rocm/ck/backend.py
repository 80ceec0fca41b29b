"""The `aiter` backend."""

from __future__ import annotations

import torch

from xattn import Backend, Capabilities, Request
from xattn.backend import Plan


class AiterBackend(Backend):
    name = "aiter"
    api_version = 1
    capabilities = (
        Capabilities(
            device="rocm",
            dtypes=frozenset({torch.float16, torch.bfloat16}),
            features=frozenset(),
            priority={"default": 80},
            checked="not yet",
        ),
    )

    def plan(self, request: Request) -> Plan:
        raise NotImplementedError
