"""The `rocm` plugin: AMD's aiter behind the contract. `aiter` calls its public functions, `aiter-triton` its Triton
kernels."""

from __future__ import annotations

import xattn
from xattn_rocm.aiter.backend import AiterBackend
from xattn_rocm.aiter_triton.backend import AiterTritonBackend


@xattn.hookimpl
def xattn_backends() -> list[xattn.Backend]:
    return [AiterBackend(), AiterTritonBackend()]
