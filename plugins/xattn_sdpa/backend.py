"""The `sdpa` backend."""

from __future__ import annotations

from xattn import Backend
from xattn_sdpa.attention.kernel import SdpaAttention
from xattn_sdpa.varlen_attention.kernel import SdpaVarlen


class SdpaBackend(Backend):
    name = "sdpa"
    api_version = 1
    kernels = (SdpaAttention(), SdpaVarlen())
