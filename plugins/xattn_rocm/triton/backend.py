"""The `aiter-triton` backend: what it declares, and which of aiter's Triton kernels a call goes to."""

from __future__ import annotations

import torch
from torch import Tensor

from xattn import AttentionKernel, AttentionOutput, AttentionRequest, Backend, Capabilities, Reason
from xattn.plugin import Plan
from xattn.plugin.offset import as_bottom_right, offset_reasons, plan_at_offset
from xattn_rocm.archs import fp8_reasons
from xattn_rocm.installation import Installation, describe, installation
from xattn_rocm.ops import opaque
from xattn_rocm.triton import mha, unified

_NAME = "aiter-triton"


class AiterTritonAttention(AttentionKernel):
    capabilities = (
        Capabilities(
            device="rocm",
            dtypes=frozenset({torch.float32, torch.float16, torch.bfloat16}),
            features=frozenset(
                {
                    "causal",
                    "window",
                    "bottom_right",
                    "offset",
                    "gqa",
                    "headdim_v",
                    "softcap",
                    "sinks",
                    "alibi_slopes",
                    "seqlens_k",
                    "deterministic",
                    "return_lse",
                }
            ),
            grads=frozenset({"qkv", "sinks"}),
            sizes={"headdim": (1, 256, 1), "headdim_v": (1, 256, 1)},
            priority={"default": 70},
            checked="aiter's kernels run by Triton's interpreter on a CPU and on an NVIDIA H200; never on an AMD GPU",
        ),
    )

    def limits(self, request: AttentionRequest) -> list[Reason]:
        installed = installation()
        if isinstance(installed, Reason):
            return [installed]
        if fp8 := fp8_reasons(request):
            return fp8
        if request.align == "offset":
            # Fewer keys take nothing away from what either kernel serves.
            return offset_reasons(request) or self.limits(as_bottom_right(request, request.seqlen_k))
        by_mha, by_unified = mha.reasons(request, installed), unified.reasons(request, installed)
        if not by_mha or not by_unified:
            return []
        # What stops the kernel that is closer to serving the call: the fewer reasons, the more use they are.
        return min(by_mha, by_unified, key=len)

    def plan(self, request: AttentionRequest) -> Plan:
        if request.align == "offset":
            return plan_at_offset(request, self.plan)
        if torch.compiler.is_compiling() and not request.any_grad:
            return opaque(request, _NAME)
        module = unified if _kernel(request) == "unified" else mha
        run = module.plan(request, _installed())
        if torch.compiler.is_compiling() or torch.cuda.device_count() < 2:
            return run  # type: ignore[no-any-return]
        return _on_its_device(run)

    def kernel_name(self, request: AttentionRequest) -> str:
        if request.align == "offset":
            return self.kernel_name(as_bottom_right(request, request.seqlen_k))
        module, function = ("unified_attention",) * 2 if _kernel(request) == "unified" else ("mha", "flash_attn_func")
        return f"aiter.ops.triton.{'attention.' if _installed().layout == 'attention' else ''}{module}.{function}"


class AiterTritonBackend(Backend):
    name = _NAME
    api_version = 1
    kernels = (AiterTritonAttention(),)

    def info(self) -> dict[str, str]:
        return {"aiter": describe()}


def _on_its_device(run: Plan) -> Plan:
    """Triton launches on the current device, wherever the tensors are."""

    def guarded(q: Tensor, k: Tensor, v: Tensor, **given: Tensor) -> Tensor | AttentionOutput:
        with torch.cuda.device(q.device):
            return run(q, k, v, **given)  # type: ignore[no-any-return]

    return guarded


def _installed() -> Installation:
    found = installation()
    assert isinstance(found, Installation)
    return found


def _kernel(request: AttentionRequest) -> str:
    """ "unified" or "mha", the better of the two where both serve the call: for a single query that is the one that
    splits the keys."""
    installed = _installed()
    if mha.reasons(request, installed) or (request.seqlen_q == 1 and not unified.reasons(request, installed)):
        return "unified"
    return "mha"
