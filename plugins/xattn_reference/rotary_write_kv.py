"""`rotary_write_kv` as the contract words it: `apply_rotary`, then `write_kv`."""

from __future__ import annotations

import torch
from torch import Tensor

from xattn import RotaryWriteKernel, RotaryWriteRequest
from xattn.plugin import Plan
from xattn_reference.apply_rotary import apply_rotary
from xattn_reference.block import everything
from xattn_reference.write_kv import write_kv


class ReferenceRotaryWrite(RotaryWriteKernel):
    capabilities = (everything(RotaryWriteRequest, checked="run on CPU"),)

    def plan(self, request: RotaryWriteRequest) -> Plan:
        interleaved = request.interleaved

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
            if v is None:
                turned_q, turned_k = (_last_rotated(x, cos, sin, interleaved) for x in (q, k))
            else:
                found = apply_rotary(q[None], k[None], cos, sin, interleaved)
                turned_q, turned_k = (x[0] for x in found if x is not None)
            write_kv(turned_k, v, k_cache, v_cache, slots, **scales)
            return turned_q.contiguous()

        return run

    def kernel_name(self, request: RotaryWriteRequest) -> str:
        return "PyTorch products, sums and indexing"


def _last_rotated(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """x (tokens, heads, width), of which the last rotary_dim are rotated."""
    kept, turned = x.split((x.shape[2] - 2 * cos.shape[1], 2 * cos.shape[1]), 2)
    return torch.cat((kept, apply_rotary(turned[None], None, cos, sin, interleaved)[0][0]), 2)
