"""The `cudnn` backend."""

from __future__ import annotations

from xattn import Backend
from xattn_nvidia.cudnn.attention import CudnnAttention
from xattn_nvidia.cudnn.installation import describe
from xattn_nvidia.cudnn.paged_attention import CudnnPaged
from xattn_nvidia.cudnn.varlen_attention import CudnnVarlen


class CudnnBackend(Backend):
    name = "cudnn"
    api_version = 1
    kernels = (CudnnAttention(), CudnnVarlen(), CudnnPaged())
    packages = ("nvidia-cudnn-frontend",)

    def info(self) -> dict[str, str]:
        return {"cudnn": describe()}
