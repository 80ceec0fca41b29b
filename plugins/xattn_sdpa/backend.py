"""The `sdpa` backend."""

from __future__ import annotations

from xattn import Backend
from xattn_sdpa.attention.kernel import SdpaAttention
from xattn_sdpa.attention_backward import SdpaBackward
from xattn_sdpa.varlen_attention.kernel import SdpaVarlen
from xattn_sdpa.varlen_attention_backward import SdpaVarlenBackward


class SdpaBackend(Backend):
    name = "sdpa"
    api_version = 1
    kernels = (SdpaAttention(), SdpaVarlen(), SdpaBackward(), SdpaVarlenBackward())
