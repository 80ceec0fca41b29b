"""The `aiter-triton` backend."""

from __future__ import annotations

import torch

from xattn import Backend, Capabilities, Request
from xattn.backend import Plan


class AiterTritonBackend(Backend):
    name = "aiter-triton"
    api_version = 1
    capabilities = (
        Capabilities(
            device="rocm",
            dtypes=frozenset({torch.float16, torch.bfloat16}),
            features=frozenset(),
            priority={"default": 70},
            checked="not yet",
        ),
    )

    def plan(self, request: Request) -> Plan:
        raise NotImplementedError
