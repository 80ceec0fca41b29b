"""`write_kv` by aiter's `reshape_and_cache`."""

from __future__ import annotations

import torch
from torch import Tensor

from xattn import Capabilities, Reason, WriteKernel, WriteRequest
from xattn.plugin import Plan
from xattn.plugin.formats import FormattedCache
from xattn_rocm import vendor
from xattn_rocm.aiter.varlen_attention.kernel import traced_reasons
from xattn_rocm.installation import installation


class AiterWrite(WriteKernel):
    capabilities = (
        Capabilities(
            device="rocm",
            dtypes=frozenset({torch.float16, torch.bfloat16}),
            # Not of quantised caches: cache-multiplies-by-the-inverse. Nor headdim_v: it has one size for both.
            features=frozenset({"format"}),
            sizes={"headdim": (8, 256, 8)},
            priority={"default": 80},
            checked="against a stand-in for aiter written from its sources; never on an AMD GPU",
        ),
    )

    def limits(self, request: WriteRequest) -> list[Reason]:
        installed = installation()
        if isinstance(installed, Reason):
            return [installed]
        if request.format is None:
            # cache-flash-strides
            hint = "Of plain pages aiter's function knows the distance of two pages, and no other stride."
            return [Reason("format", None, '"vllm" or "asm"', hint)]
        return traced_reasons()

    def plan(self, request: WriteRequest) -> Plan:
        kernel, asm_layout = vendor.module("aiter").reshape_and_cache, request.format == "asm"

        def run(k: Tensor, v: Tensor, k_cache: FormattedCache, v_cache: FormattedCache, slots: Tensor) -> None:
            if len(slots) > 0:
                given = _in_rows(k), _in_rows(v), k_cache.memory, v_cache.memory, slots.contiguous()
                kernel(*given, "auto", None, None, asm_layout)

        return run

    def kernel_name(self, request: WriteRequest) -> str:
        return f"aiter.reshape_and_cache (HIP, {request.format} layout)"


def _in_rows(x: Tensor) -> Tensor:
    """It knows the distance of two tokens, and no other stride."""
    return x if x[0].is_contiguous() else x.contiguous()
