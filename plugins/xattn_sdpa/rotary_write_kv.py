"""`rotary_write_kv` by the `sdpa` backend: its kernels of `apply_rotary` and `write_kv`, one after the other."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from xattn import Capabilities, RotaryRequest, RotaryWriteKernel, RotaryWriteRequest, WriteRequest
from xattn.plugin import Plan
from xattn_sdpa.apply_rotary import SdpaRotary
from xattn_sdpa.write_kv import SdpaWrite

_FEATURES: frozenset[Any] = frozenset(RotaryWriteRequest.vocabulary.feature_names)
_FLOATS = frozenset({torch.float64, torch.float32, torch.float16, torch.bfloat16})
_rotary, _write = SdpaRotary(), SdpaWrite()


class SdpaRotaryWrite(RotaryWriteKernel):
    capabilities = (
        Capabilities(device="cpu", dtypes=_FLOATS, features=_FEATURES, checked="run on CPU, torch 2.13"),
        Capabilities(
            device="cuda",
            dtypes=_FLOATS,
            features=_FEATURES,
            checked="its operations run on CPU, never on a GPU",
        ),
    )

    def plan(self, request: RotaryWriteRequest) -> Plan:
        latent = request.headdim_v is None
        rotary_dim = request.rotary_dim
        rotate = _rotary.plan(_rotated(request, request.rotary_dim if latent else request.headdim))
        write = _write.plan(_written(request))

        def run(
            q: Tensor,
            k: Tensor,
            v: Tensor | None,
            cos: Tensor,
            sin: Tensor,
            k_cache: Tensor,
            v_cache: Tensor | None,
            slots: Tensor,
            **scales: Tensor,
        ) -> Tensor:
            if latent:
                parts = [x.split((x.shape[2] - rotary_dim, rotary_dim), 2) for x in (q, k)]
                turned = rotate(parts[0][1][None], parts[1][1][None], cos, sin)
                q, k = (torch.cat((kept, x[0]), 2) for (kept, _), x in zip(parts, turned, strict=True))
            else:
                q, k = (x[0] for x in rotate(q[None], k[None], cos, sin))
            write(k, v, k_cache, v_cache, slots, **scales)
            return q

        return run

    def kernel_name(self, request: RotaryWriteRequest) -> str:
        return "torch's products and sums, then index_put_"


def _rotated(request: RotaryWriteRequest, headdim: int) -> RotaryRequest:
    """The call of `apply_rotary` that it begins with."""
    return RotaryRequest(
        device=request.device,
        arch=request.arch,
        dtype=request.dtype,
        cos_dtype=request.cos_dtype,
        batch=1,
        seqlen=request.tokens,
        nheads=request.nheads,
        nheads_k=request.nheads_k,
        headdim=headdim,
        rotary_dim=request.rotary_dim,
        interleaved=request.interleaved,
    )


def _written(request: RotaryWriteRequest) -> WriteRequest:
    """The call of `write_kv` that it ends with."""
    return WriteRequest(
        device=request.device,
        arch=request.arch,
        dtype=request.dtype,
        cache_dtype=request.cache_dtype,
        tokens=request.tokens,
        num_blocks=request.num_blocks,
        block_size=request.block_size,
        nheads_k=request.nheads_k,
        headdim=request.headdim,
        headdim_v=request.headdim_v,
        k_scale=request.k_scale,
        v_scale=request.v_scale,
    )
