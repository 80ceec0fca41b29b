"""The `nki` backend."""

from __future__ import annotations

import torch

from xattn import Backend, Capabilities, Reason, Request
from xattn.backend import Plan
from xattn_neuron.installation import describe, installation


class NkiBackend(Backend):
    name = "nki"
    api_version = 1
    capabilities = (
        Capabilities(
            device="neuron",
            dtypes=frozenset({torch.bfloat16}),
            features=frozenset({"causal", "gqa"}),
            headdim=(1, 128, 1),
            priority={"default": 90},
            checked="never",
        ),
    )

    def limits(self, request: Request) -> list[Reason]:
        installed = installation()
        return [installed] if isinstance(installed, Reason) else []

    def plan(self, request: Request) -> Plan:
        raise NotImplementedError

    def info(self) -> dict[str, str]:
        return {"neuron": describe()}
