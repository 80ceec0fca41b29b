"""The `sdpa` backend."""

from __future__ import annotations

from xattn import Backend
from xattn_sdpa.apply_rotary import SdpaRotary
from xattn_sdpa.attention.kernel import SdpaAttention
from xattn_sdpa.attention_backward import SdpaBackward
from xattn_sdpa.logits.kernel import SdpaMqaLogits, SdpaPagedMqaLogits
from xattn_sdpa.mla_attention.kernel import SdpaMla
from xattn_sdpa.paged_attention.kernel import SdpaPaged
from xattn_sdpa.rotary_write_kv import SdpaRotaryWrite
from xattn_sdpa.varlen_attention.kernel import SdpaVarlen
from xattn_sdpa.varlen_attention_backward import SdpaVarlenBackward
from xattn_sdpa.write_kv import SdpaWrite


class SdpaBackend(Backend):
    name = "sdpa"
    api_version = 1
    kernels = (
        SdpaAttention(),
        SdpaRotary(),
        SdpaVarlen(),
        SdpaPaged(),
        SdpaMla(),
        SdpaWrite(),
        SdpaRotaryWrite(),
        SdpaBackward(),
        SdpaVarlenBackward(),
        SdpaMqaLogits(),
        SdpaPagedMqaLogits(),
    )
