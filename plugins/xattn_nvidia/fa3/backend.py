"""The `fa3` backend."""

from __future__ import annotations

from xattn import Backend
from xattn_nvidia.fa3.attention import Fa3Attention
from xattn_nvidia.fa3.attention_backward import Fa3Backward
from xattn_nvidia.fa3.installation import describe
from xattn_nvidia.fa3.paged_attention import Fa3Paged
from xattn_nvidia.fa3.varlen_attention import Fa3Varlen


class Fa3Backend(Backend):
    name = "fa3"
    api_version = 1
    kernels = (Fa3Attention(), Fa3Backward(), Fa3Varlen(), Fa3Paged())
    packages = ("flash_attn_3", "fa3-fwd")

    def info(self) -> dict[str, str]:
        return {"fa3": describe()}
