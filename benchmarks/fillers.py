"""A plugin of backends that rank above all others and decline every call of a benchmark: a miss has to ask them."""

from __future__ import annotations

from typing import Any

import torch

import xattn
from xattn.ops.table import OPS
from xattn.plugin import Plan, Request


class _Declining(xattn.Kernel[Any]):
    capabilities = (
        xattn.Capabilities(
            device="cpu",
            dtypes=frozenset({torch.float16}),
            features=frozenset(),
            priority={"default": 1000},
            checked="declines by dtype",
        ),
    )

    def plan(self, request: Request) -> Plan:
        raise AssertionError("declined every call, yet was chosen")


class _Filler(xattn.Backend):
    """With a kernel for each op that there is."""

    api_version = 1
    kernels = tuple(type("Declining", (_Declining,), {"op": op})() for op in OPS)


COUNT = 10  # more than any benchmark asks for


@xattn.hookimpl
def xattn_backends() -> list[xattn.Backend]:
    return [type(f"Filler{i}", (_Filler,), {"name": f"filler-{i}"})() for i in range(COUNT)]
