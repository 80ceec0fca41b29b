"""A plugin of backends that rank above all others and decline every call of a benchmark: a miss has to ask them."""

from __future__ import annotations

import torch

import xattn


class _Filler(xattn.Backend):
    api_version = 1
    capabilities = (
        xattn.Capabilities(
            device="cpu",
            dtypes=frozenset({torch.float16}),
            features=frozenset({"causal", "gqa"}),
            headdim=(32, 256, 8),
            priority={"default": 1000},
            checked="declines by dtype",
        ),
    )

    def plan(self, request: xattn.Request) -> xattn.backend.Plan:
        raise AssertionError("declined every call, yet was chosen")


COUNT = 6  # more than any benchmark asks for


@xattn.hookimpl
def xattn_backends() -> list[xattn.Backend]:
    return [type(f"Filler{i}", (_Filler,), {"name": f"filler-{i}"})() for i in range(COUNT)]
