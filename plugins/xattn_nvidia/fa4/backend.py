"""The `fa4` backend."""

from __future__ import annotations

from xattn import Backend
from xattn_nvidia.fa4.attention import Fa4Attention
from xattn_nvidia.fa4.attention_backward import Fa4Backward
from xattn_nvidia.fa4.installation import describe
from xattn_nvidia.fa4.paged_attention import Fa4Paged
from xattn_nvidia.fa4.varlen_attention import Fa4Varlen


class Fa4Backend(Backend):
    name = "fa4"
    api_version = 1
    kernels = (Fa4Attention(), Fa4Backward(), Fa4Varlen(), Fa4Paged())
    packages = ("flash-attn-4", "nvidia-cutlass-dsl-libs-base")

    def info(self) -> dict[str, str]:
        return {"fa4": describe()}
