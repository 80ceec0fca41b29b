"""The `aiter` backend."""

from __future__ import annotations

from xattn import Backend
from xattn_rocm.aiter.apply_rotary import AiterRotary
from xattn_rocm.aiter.attention.kernel import AiterAttention
from xattn_rocm.aiter.paged_attention.decode import AiterDecode
from xattn_rocm.aiter.paged_attention.prefill import AiterPrefill
from xattn_rocm.aiter.varlen_attention.kernel import AiterVarlen
from xattn_rocm.aiter.write_kv import AiterWrite
from xattn_rocm.installation import describe


class AiterBackend(Backend):
    name = "aiter"
    api_version = 1
    kernels = (AiterAttention(), AiterVarlen(), AiterDecode(), AiterPrefill(), AiterWrite(), AiterRotary())
    packages = ("amd-aiter",)

    def info(self) -> dict[str, str]:
        return {"aiter": describe()}
