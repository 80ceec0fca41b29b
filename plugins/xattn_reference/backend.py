"""The `reference` backend: every op, every feature of the contract, differentiable, slow."""

from __future__ import annotations

from xattn import Backend
from xattn_reference.apply_rotary import ReferenceRotary
from xattn_reference.attention import ReferenceAttention
from xattn_reference.attention_backward import ReferenceBackward
from xattn_reference.hstu_attention import ReferenceHstu
from xattn_reference.merge_attention import ReferenceMerge
from xattn_reference.mla_attention import ReferenceMla
from xattn_reference.mqa_logits import ReferenceMqaLogits, ReferencePagedMqaLogits
from xattn_reference.paged_attention import ReferencePaged
from xattn_reference.rotary_write_kv import ReferenceRotaryWrite
from xattn_reference.varlen_attention import ReferenceVarlen
from xattn_reference.varlen_attention_backward import ReferenceVarlenBackward
from xattn_reference.write_kv import ReferenceWrite


class ReferenceBackend(Backend):
    name = "reference"
    api_version = 1
    kernels = (
        ReferenceAttention(),
        ReferenceRotary(),
        ReferenceVarlen(),
        ReferencePaged(),
        ReferenceMerge(),
        ReferenceBackward(),
        ReferenceVarlenBackward(),
        ReferenceWrite(),
        ReferenceMla(),
        ReferenceRotaryWrite(),
        ReferenceHstu(),
        ReferenceMqaLogits(),
        ReferencePagedMqaLogits(),
    )
