"""The `nvidia` plugin: the kernels that NVIDIA's cards have beside torch's own, behind the contract."""

from __future__ import annotations

import xattn
from xattn_nvidia.fa3.backend import Fa3Backend


@xattn.hookimpl
def xattn_backends() -> list[xattn.Backend]:
    return [Fa3Backend()]
