"""The `sdpa` plugin: the contract on torch's own fused attention kernels."""

from __future__ import annotations

import xattn
from xattn_sdpa.backend import SdpaBackend


@xattn.hookimpl
def xattn_backends() -> list[xattn.Backend]:
    return [SdpaBackend()]
