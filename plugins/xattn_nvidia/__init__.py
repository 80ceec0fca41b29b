"""The `nvidia` plugin: the kernels that NVIDIA's cards have beside torch's own, behind the contract."""

from __future__ import annotations

import xattn
from xattn_nvidia.cudnn.backend import CudnnBackend
from xattn_nvidia.fa3.backend import Fa3Backend
from xattn_nvidia.fa4.backend import Fa4Backend


@xattn.hookimpl
def xattn_backends() -> list[xattn.Backend]:
    return [Fa3Backend(), Fa4Backend(), CudnnBackend()]
