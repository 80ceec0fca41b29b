"""The `aiter-triton` backend."""

from __future__ import annotations

from xattn import Backend
from xattn_rocm.aiter_triton.attention.mha import MhaAttention
from xattn_rocm.aiter_triton.attention.unified import UnifiedAttention
from xattn_rocm.aiter_triton.hstu_attention.kernel import TritonHstu
from xattn_rocm.aiter_triton.mla_attention.decode import DecodeMla, GroupedDecodeMla
from xattn_rocm.aiter_triton.mla_attention.pages import PrefillMla
from xattn_rocm.aiter_triton.mla_attention.slots import SparseMla
from xattn_rocm.aiter_triton.mqa_logits import TritonMqaLogits
from xattn_rocm.aiter_triton.paged_attention.chunked import ChunkedPaged
from xattn_rocm.aiter_triton.paged_attention.decode import DecodePaged
from xattn_rocm.aiter_triton.paged_attention.extend import ExtendPaged
from xattn_rocm.aiter_triton.paged_attention.prefill import PrefillPaged
from xattn_rocm.aiter_triton.paged_attention.unified import UnifiedPaged
from xattn_rocm.aiter_triton.varlen_attention.kernel import MhaVarlen
from xattn_rocm.aiter_triton.varlen_attention_backward.kernel import MhaVarlenBackward
from xattn_rocm.aiter_triton.write_kv import FusedWrite
from xattn_rocm.installation import describe


class AiterTritonBackend(Backend):
    name = "aiter-triton"
    api_version = 1
    kernels = (
        MhaAttention(),
        UnifiedAttention(),
        MhaVarlen(),
        MhaVarlenBackward(),
        UnifiedPaged(),
        DecodeMla(),
        PrefillMla(),
        GroupedDecodeMla(),
        SparseMla(),
        DecodePaged(),
        PrefillPaged(),
        ChunkedPaged(),
        ExtendPaged(),
        TritonHstu(),
        TritonMqaLogits(),
        FusedWrite(),
    )
    packages = ("amd-aiter", "triton", "pytorch-triton-rocm")

    def info(self) -> dict[str, str]:
        return {"aiter": describe()}
